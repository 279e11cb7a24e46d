/* A load generator for what wrk does not do: a constant rate, or an exact number of requests.
 *
 *     paced HOST PORT REQUEST_FILE CONNECTIONS REQUESTS RATE
 *
 * RATE 0: each connection asks again as soon as it was answered. Otherwise request i is due at i / RATE seconds, whatever
 * has become of those before it, and its latency counts from when it was due: a proxy that stalls is charged for all
 * that waited meanwhile (no coordinated omission). One that finds no free connection waits for one.
 *
 * Prints one line of JSON: requests, errors (not 200, or cut), seconds, p50_us, p99_us, max_us.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4096, HEAD = 16384, SCRATCH = 1 << 18 };

typedef struct {
    int fd;
    uint64_t due_ns;
    size_t sent;            /* of the request */
    char head[HEAD];
    size_t held;            /* bytes in `head`: of a head, or of a line of a chunked body */
    enum { IDLE, IN_HEAD, IN_LENGTH, CHUNK_LINE, CHUNK_DATA, TRAILER } state;
    size_t left;
    int ok, broken;
} Connection;

static Connection *all[MOST];
static int idle[MOST], idles, connections;
static char *request, scratch[SCRATCH];
static size_t request_size;
static struct sockaddr_in there;
static uint64_t *latencies, began_ns;
static long wanted, begun, answered, errors;
static double rate;
static int poller;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static _Noreturn void die(const char *what) {
    perror(what);
    exit(1);
}

static void open_one(int index) {
    Connection *c = all[index];
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&there, sizeof there)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event watched = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &watched);
    c->broken = 0;
}

static void push(int index) {
    Connection *c = all[index];
    while (c->sent < request_size) {
        ssize_t n = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) {
            c->broken = 1;
            return;
        }
        if (n < 0) break;
        c->sent += (size_t)n;
    }
    struct epoll_event watched = {.events = EPOLLIN | (c->sent < request_size ? EPOLLOUT : 0u),
                                  .data.u32 = (uint32_t)index};
    if (request_size > 65536) epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &watched);
}

static void ask(int index, uint64_t due_ns) {
    Connection *c = all[index];
    c->due_ns = due_ns;
    c->sent = c->held = 0;
    c->ok = 0;
    c->state = IN_HEAD;
    begun++;
    push(index);
}

static void done(int index, int ok) {
    Connection *c = all[index];
    latencies[answered++] = now_ns() - c->due_ns;
    errors += !ok;
    c->state = IDLE;
    if (rate == 0 && begun < wanted && !c->broken) ask(index, now_ns());
    else idle[idles++] = index;
}

static void lost(int index) {
    Connection *c = all[index];
    close(c->fd);
    if (c->state == IDLE) {
        for (int i = 0; i < idles; i++)
            if (idle[i] == index) idle[i] = idle[--idles];
    } else {
        c->broken = 1;
        done(index, 0);
        idles--;
    }
    open_one(index);
    if (rate == 0 && begun < wanted) ask(index, now_ns());
    else idle[idles++] = index;
}

/* A line in `head` that ends with `end`, fed from `at`; bytes taken, or 0 where it is not whole (all was taken). */
static size_t line(Connection *c, const char *at, size_t left, const char *end) {
    size_t size = strlen(end), before = c->held, part = left < HEAD - 1 - before ? left : HEAD - 1 - before;
    memcpy(c->head + before, at, part);
    c->held += part;
    size_t from = before >= size ? before - size + 1 : 0;
    char *stop = memmem(c->head + from, c->held - from, end, size);
    if (!stop) {
        if (c->held >= HEAD - 1) die("an answer's head is too large");
        return 0;
    }
    size_t whole = (size_t)(stop - c->head) + size;
    c->head[whole - 1] = 0;
    c->held = 0;
    return whole - before;
}

static void feed(int index, const char *at, size_t left) {
    Connection *c = all[index];
    while (left) {
        size_t n;
        switch (c->state) {
        case IDLE: die("bytes came that nobody asked for");
        case IN_HEAD:
            if (!(n = line(c, at, left, "\r\n\r\n"))) return;
            at += n, left -= n;
            c->ok = !strncmp(c->head, "HTTP/1.1 200", 12);
            char *length = strcasestr(c->head, "\r\ncontent-length:");
            if (length) {
                c->left = strtoul(length + 17, NULL, 10);
                c->state = IN_LENGTH;
                if (!c->left) done(index, c->ok);
            } else if (strcasestr(c->head, "\r\ntransfer-encoding:")) c->state = CHUNK_LINE;
            else die("an answer without a length");
            break;
        case IN_LENGTH:
        case CHUNK_DATA:
            n = left < c->left ? left : c->left;
            at += n, left -= n, c->left -= n;
            if (c->left) return;
            if (c->state == CHUNK_DATA) c->state = CHUNK_LINE;
            else done(index, c->ok);
            break;
        case CHUNK_LINE:
            if (!(n = line(c, at, left, "\r\n"))) return;
            at += n, left -= n;
            c->left = strtoul(c->head, NULL, 16) + 2;
            c->state = c->left == 2 ? TRAILER : CHUNK_DATA;
            break;
        case TRAILER:
            if (!(n = line(c, at, left, "\r\n"))) return;
            at += n, left -= n;
            if (n <= 2 && c->head[0] == '\r') done(index, c->ok);
            break;
        }
    }
}

static uint64_t due(long i) { return began_ns + (uint64_t)((double)i * 1e9 / rate); }

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: paced HOST PORT REQUEST_FILE CONNECTIONS REQUESTS RATE\n");
        return 2;
    }
    there.sin_family = AF_INET;
    there.sin_port = htons((uint16_t)atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &there.sin_addr);
    FILE *file = fopen(argv[3], "rb");
    if (!file) die(argv[3]);
    request = malloc(1 << 24);
    request_size = fread(request, 1, 1 << 24, file);
    connections = atoi(argv[4]);
    if (connections < 1 || connections > MOST) die("CONNECTIONS");
    wanted = atol(argv[5]);
    rate = atof(argv[6]);
    latencies = calloc((size_t)wanted, sizeof *latencies);
    prctl(PR_SET_TIMERSLACK, 1);
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < connections; i++) {
        all[i] = calloc(1, sizeof(Connection));
        open_one(i);
        idle[idles++] = connections - 1 - i;
    }
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event watched = {.events = EPOLLIN, .data.u32 = MOST};
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &watched);
    began_ns = now_ns() + (rate > 0 ? 20000000u : 0);
    if (rate == 0)
        while (idles && begun < wanted) ask(idle[--idles], now_ns());
    while (answered < wanted) {
        if (rate > 0) {
            while (idles && begun < wanted && due(begun) <= now_ns()) ask(idle[--idles], due(begun));
            if (begun < wanted && idles) {
                uint64_t next = due(begun);
                struct itimerspec at = {.it_value = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)}};
                timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
            }
        }
        struct epoll_event events[256];
        int n = epoll_wait(poller, events, 256, 20000);
        if (n == 0) {
            fprintf(stderr, "nothing came for 20 s\n");
            return 1;
        }
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == MOST) {
                uint64_t ticks;
                if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
                continue;
            }
            int index = (int)events[i].data.u32;
            if (events[i].events & EPOLLOUT) push(index);
            if (!(events[i].events & ~(unsigned)EPOLLOUT)) continue;
            ssize_t got = recv(all[index]->fd, scratch, sizeof scratch, MSG_DONTWAIT);
            if (got > 0) feed(index, scratch, (size_t)got);
            else if (got == 0 || errno != EAGAIN) lost(index);
        }
    }
    double seconds = (double)(now_ns() - began_ns) / 1e9;
    qsort(latencies, (size_t)wanted, sizeof *latencies, ascending);
    printf("{\"requests\": %ld, \"errors\": %ld, \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"max_us\": %.1f}\n", wanted, errors, seconds, (double)latencies[wanted / 2] / 1e3,
           (double)latencies[wanted * 99 / 100] / 1e3, (double)latencies[wanted - 1] / 1e3);
    return 0;
}

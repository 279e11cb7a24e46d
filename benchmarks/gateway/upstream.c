/* What stands behind every proxy of the benchmark: fixed answers, whole uploads read, connections kept.
 *
 *     upstream COUNTS_FILE CHUNK_GAP_US PORT...
 *
 * One thread, epoll. By what the target contains: "generate_stream" gets a stream of CHUNKS server-sent events, each
 * written by itself when its time has come, or, with "?burst", all at once; "/image/" gets a binary tensor; all else
 * a JSON answer. Nothing is answered before the body has been read to its end. A request that it cannot read ends its
 * connection with a 400, which load generators count. It says "ready" once it listens and ends with its standard input.
 *
 * COUNTS_FILE has 16 bytes, which are mapped: how many answers were begun, and how many events of paced streams sent. Who
 * measures reads them at the ends of a window, so that what comes before and after need not be measured too.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 20000, HEAD = 16384, SCRATCH = 1 << 18, CHUNKS = 200, TENSOR = 4000, JSON = 512 };

typedef struct {
    char head[HEAD];      /* what came of a head that is not whole yet */
    size_t held;
    size_t body_left;     /* of the request that is being read */
    int answer;           /* which answer follows the body */
    int chunks_left;      /* of a stream that is being sent; 0: none */
    uint64_t due_ns;
    int streaming_at;     /* index in `streaming` */
} Connection;

enum { ANSWER_JSON, ANSWER_TENSOR, ANSWER_BURST, ANSWER_STREAM };

static Connection *connections[MOST];
static int streaming[MOST], streams;
static char scratch[SCRATCH];
static char json_answer[JSON + 256], tensor_answer[TENSOR + 512], stream_head[256], event[512], burst[CHUNKS * 512];
static size_t json_size, tensor_size, stream_head_size, event_size, burst_size;
static uint64_t gap_ns, stagger;
static volatile uint64_t *counts; /* answers, events */
static int poller;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void make_answers(void) {
    char text[JSON + 1];
    int n = snprintf(text, sizeof text, "{\"model_name\":\"bench\",\"model_version\":\"1\",\"outputs\":[{\"name\":"
                     "\"scores\",\"datatype\":\"FP32\",\"shape\":[1,48],\"data\":[0.125");
    while (n < JSON - 9) n += snprintf(text + n, sizeof text - (size_t)n, ",0.125");
    n += snprintf(text + n, sizeof text - (size_t)n, "]}]}");
    json_size = (size_t)snprintf(json_answer, sizeof json_answer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                                 "Content-Length: %d\r\n\r\n%s", n, text);
    n = snprintf(text, sizeof text, "{\"model_name\":\"image\",\"outputs\":[{\"name\":\"scores\",\"datatype\":\"FP32\","
                 "\"shape\":[1,%d],\"parameters\":{\"binary_data_size\":%d}}]}", TENSOR / 4, TENSOR);
    tensor_size = (size_t)snprintf(tensor_answer, sizeof tensor_answer, "HTTP/1.1 200 OK\r\nContent-Type: "
                                   "application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
                                   "Content-Length: %d\r\n\r\n%s", n, n + TENSOR, text);
    memset(tensor_answer + tensor_size, 0x3e, TENSOR);
    tensor_size += TENSOR;
    stream_head_size = (size_t)snprintf(stream_head, sizeof stream_head, "HTTP/1.1 200 OK\r\nContent-Type: "
                                        "text/event-stream\r\nCache-Control: no-cache\r\n"
                                        "Transfer-Encoding: chunked\r\n\r\n");
    n = snprintf(text, sizeof text, "data: {\"id\":\"cmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\","
                 "\"created\":1700000000,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},"
                 "\"finish_reason\":null}]}\n\n");
    event_size = (size_t)snprintf(event, sizeof event, "%x\r\n%s\r\n", (unsigned)n, text);
    memcpy(burst, stream_head, stream_head_size);
    burst_size = stream_head_size;
    for (int i = 0; i < CHUNKS; i++, burst_size += event_size) memcpy(burst + burst_size, event, event_size);
    memcpy(burst + burst_size, "0\r\n\r\n", 5);
    burst_size += 5;
}

static void end(int fd) {
    Connection *c = connections[fd];
    if (c->chunks_left) {
        streaming[c->streaming_at] = streaming[--streams];
        connections[streaming[c->streaming_at]]->streaming_at = c->streaming_at;
    }
    free(c);
    connections[fd] = NULL;
    close(fd);
}

/* Answers are small beside a socket's buffer; one that does not fit is a reader that has stopped, and is let go. */
static int put(int fd, const char *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) == (ssize_t)size) return 1;
    end(fd);
    return 0;
}

static int answer(int fd) {
    Connection *c = connections[fd];
    counts[0]++;
    if (c->answer == ANSWER_JSON) return put(fd, json_answer, json_size);
    if (c->answer == ANSWER_TENSOR) return put(fd, tensor_answer, tensor_size);
    if (c->answer == ANSWER_BURST) return put(fd, burst, burst_size);
    if (!put(fd, stream_head, stream_head_size)) return 0;
    c->chunks_left = CHUNKS;
    /* Streams that begin together do not go in step. */
    c->due_ns = now_ns() + gap_ns * (stagger++ * 5 % 16) / 16;
    c->streaming_at = streams;
    streaming[streams++] = fd;
    return 1;
}

static int refuse(int fd) {
    static const char text[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    send(fd, text, sizeof text - 1, MSG_NOSIGNAL);
    end(fd);
    return 0;
}

/* Takes a head that ends at `size`; 0 where the connection has ended. */
static int take_head(int fd, char *head, size_t size) {
    Connection *c = connections[fd];
    char last = head[size - 1];
    head[size - 1] = 0;
    char *line_end = memchr(head, '\r', size);
    char *length = strcasestr(head, "\r\ncontent-length:");
    if (!line_end || strcasestr(head, "\r\ntransfer-encoding:")) return refuse(fd);
    c->body_left = length ? strtoul(length + 17, NULL, 10) : 0;
    size_t line = (size_t)(line_end - head);
    if (memmem(head, line, "generate_stream?burst", 21)) c->answer = ANSWER_BURST;
    else if (memmem(head, line, "generate_stream", 15)) c->answer = ANSWER_STREAM;
    else if (memmem(head, line, "/image/", 7)) c->answer = ANSWER_TENSOR;
    else c->answer = ANSWER_JSON;
    head[size - 1] = last;
    return c->body_left || answer(fd);
}

static void readable(int fd) {
    Connection *c = connections[fd];
    ssize_t got = recv(fd, scratch, sizeof scratch, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) end(fd);
        return;
    }
    char *at = scratch;
    size_t left = (size_t)got;
    while (left) {
        if (c->body_left) {
            size_t part = left < c->body_left ? left : c->body_left;
            c->body_left -= part;
            at += part;
            left -= part;
            if (!c->body_left && !answer(fd)) return;
            continue;
        }
        if (!c->held) {
            char *stop = memmem(at, left, "\r\n\r\n", 4);
            if (stop) {
                size_t size = (size_t)(stop - at) + 4;
                if (!take_head(fd, at, size)) return;
                at += size;
                left -= size;
                continue;
            }
        }
        size_t before = c->held, part = left < HEAD - before ? left : HEAD - before;
        memcpy(c->head + before, at, part);
        c->held += part;
        size_t from = before > 3 ? before - 3 : 0;
        char *stop = memmem(c->head + from, c->held - from, "\r\n\r\n", 4);
        if (!stop) {
            if (c->held == HEAD) refuse(fd);
            return;
        }
        size_t size = (size_t)(stop - c->head) + 4;
        c->held = 0;
        if (!take_head(fd, c->head, size)) return;
        at += size - before;
        left -= size - before;
    }
}

/* Sends what is due; milliseconds until more is, -1 where nothing is. */
static int stream_on(void) {
    if (!streams) return -1;
    uint64_t now = now_ns(), next = UINT64_MAX;
    for (int i = 0; i < streams;) {
        int fd = streaming[i];
        Connection *c = connections[fd];
        if (c->due_ns <= now) {
            c->due_ns += gap_ns;
            counts[1]++;
            if (c->chunks_left > 1) {
                if (!put(fd, event, event_size)) continue;
                c->chunks_left--;
            } else {
                char last[sizeof event + 8];
                memcpy(last, event, event_size);
                memcpy(last + event_size, "0\r\n\r\n", 5);
                if (!put(fd, last, event_size + 5)) continue;
                c->chunks_left = 0;
                streaming[i] = streaming[--streams];
                connections[streaming[i]]->streaming_at = i;
                continue;
            }
        }
        if (c->due_ns < next) next = c->due_ns;
        i++;
    }
    if (!streams) return -1;
    return next <= now ? 0 : (int)((next - now) / 1000000u) + 1;
}

static void watch(int fd) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted);
}

static void take_in(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
        if (fd < 0) return;
        if (fd >= MOST || !(connections[fd] = calloc(1, sizeof(Connection)))) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(fd);
    }
}

int main(int argc, char **argv) {
    static char listening[MOST];
    if (argc < 4) {
        fprintf(stderr, "usage: upstream COUNTS_FILE CHUNK_GAP_US PORT...\n");
        return 2;
    }
    int file = open(argv[1], O_RDWR | O_CLOEXEC);
    counts = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || counts == MAP_FAILED) {
        perror(argv[1]);
        return 1;
    }
    close(file);
    gap_ns = strtoull(argv[2], NULL, 10) * 1000u;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    make_answers();
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 3; i < argc; i++) {
        struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[i]))};
        here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&here, sizeof here) || listen(fd, 4096)) {
            perror(argv[i]);
            return 1;
        }
        listening[fd] = 1;
        watch(fd);
    }
    watch(0);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(poller, events, 256, stream_on());
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == 0) return 0;
            if (listening[fd]) take_in(fd);
            else if (connections[fd]) readable(fd);
        }
    }
}

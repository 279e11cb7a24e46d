"""What is measured, scenario by scenario, in interleaved rounds: A, B, C, A, B, C, ...

Proxies are started once for all scenarios; only memory is measured on one that was started for it, and before the
others: what several processes map is divided among them in PSS.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.gateway import idle, ours, peers, programs, soak, verdicts
from benchmarks.gateway.cost import Cores
from benchmarks.gateway.load import Counts, Generators, Run, Unit
from benchmarks.gateway.peers import NGINX, Place, Proxy
from benchmarks.gateway.traffic import BURST, CHAT, CHUNKS, INFER, STREAM, TENSOR, VARIED, Request
from benchmarks.gateway.verdicts import Outcome
from benchmarks.local import free_ports

CONCURRENCY: Final = 64
#: Of `sse`: streams at once, and microseconds between two chunks of one. Together 6,400 chunks a second, so that even
#: the naive proxy keeps up and none saves by taking several at once.
STREAMS: Final = 16
CHUNK_GAP_US: Final = 2500
RATE: Final = 500
RATE_CONNECTIONS: Final = 16
RATE_WARM: Final = 100
REPLICAS: Final = 2
TWO: Final = "ours two workers"
NGINX_TWO: Final = "nginx two workers"
OURS_INFER: Final = "ours infer"
DIRECT: Final = "direct"
_LEAST_ROUNDS: Final = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of a run."""
    total_s: float
    """When it is to be over; rounds are left out where the machine is too slow for it."""
    narrow: bool
    """Whether only `post` has all peers, and the rest those that its bars are about."""


class Bench:
    """What all scenarios share: the upstream, the load generators, and the proxies that run."""

    def __init__(self, folder: Path, cores: Cores, plan: Plan, names: Sequence[str], envoy: Path | None) -> None:
        """`names` are the peers'. Raises programs.Missing where wrk or a compiler is not there."""
        self.plan = plan
        self.missing: dict[str, str] = {}
        """Why a peer was left out."""
        self.native: bool | None = None
        """Whether all workers of ours ran on compiled code; None before any has run."""
        self.until = math.inf
        """When the rounds of this scenario should be over (monotonic)."""
        self._folder = folder
        self._cores = cores
        self._names = names
        self._envoy = envoy
        self._stack = ExitStack()
        self._running: dict[str, Proxy] = {}
        self._counts = Counts(folder / "counts")
        self.load = Generators(folder, cores.load, self._counts)
        self._upstream_program = programs.compiled(folder, "upstream")
        self.upstream = free_ports(REPLICAS)

    def __enter__(self) -> Bench:
        argv: list[str | Path] = [self._upstream_program, self._counts.path, str(CHUNK_GAP_US)]
        argv += map(str, self.upstream)
        log = self._folder / "upstream.log"
        self._stack.enter_context(programs.serving(argv, self.upstream[-1], log, self._cores.load))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def direct(self) -> Proxy:
        """The upstream without a proxy."""
        return Proxy(DIRECT, self.upstream[0], ())

    def place(self, name: str, cores: frozenset[int] | None = None) -> Place:
        """Where a proxy is started."""
        return Place(self._folder / name.replace(" ", "-"), cores or self._cores.proxy, self.upstream, self._envoy)

    def names(self, wanted: Sequence[str] | None = None) -> list[str]:
        """The peers to be measured (of `wanted`, where told), and ours."""
        return [*(n for n in self._names if wanted is None or n in wanted), ours.OURS]

    def proxies(self, wanted: Sequence[str] | None = None) -> dict[str, Proxy]:
        """Those of `names` that are there, started where they do not run yet."""
        names = self.names(wanted)
        for name in names:
            if name not in self._running and name not in self.missing:
                try:
                    self._running[name] = self._stack.enter_context(self.start(name))
                except programs.Missing as error:
                    self.missing[name] = str(error)
        return {name: self._running[name] for name in names if name in self._running}

    def two_workers(self, name: str) -> Proxy:
        """TWO or NGINX_TWO."""
        if name not in self._running:
            place = replace(self.place(name, self._cores.pair), workers=2)
            pair = self._stack.enter_context(
                ours.running(place, 2, TWO) if name == TWO else peers.running(NGINX, place)
            )
            self._running[name] = self._note(pair) if name == TWO else pair
        return self._running[name]

    @contextmanager
    def start(self, name: str, suffix: str = "") -> Iterator[Proxy]:
        """A proxy of its own. Raises programs.Missing and programs.Failed."""
        place = self.place(name + suffix)
        with ours.running(place) if name == ours.OURS else peers.running(name, place) as proxy:
            yield self._note(proxy) if name == ours.OURS else proxy

    def _note(self, proxy: Proxy) -> Proxy:
        self.native = proxy.native and self.native is not False
        return proxy

    def narrow(self, *wanted: str) -> Sequence[str] | None:
        """These peers where little is to be measured, else all."""
        return wanted if self.plan.narrow else None


def interleaved(bench: Bench, measures: Mapping[str, Callable[[], Run]], rounds: int = 0) -> dict[str, list[Run]]:
    """Every one once a round, round after round, and at least two rounds if time is short."""
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    for number in range(rounds or bench.plan.rounds):
        if number >= _LEAST_ROUNDS and time.monotonic() > bench.until:
            break
        for name, measure in measures.items():
            runs[name].append(measure())
    return runs


def _costs(runs: Mapping[str, Sequence[Run]]) -> Outcome:
    figures = {
        name: {
            "cpu_us": [run.cpu_us for run in rounds],
            "requests_per_s": [run.done / run.seconds for run in rounds],
        }
        for name, rounds in runs.items()
    }
    return Outcome(figures, _failed(runs))


def _failed(runs: Mapping[str, Sequence[Run]]) -> int:
    return sum(run.failed for rounds in runs.values() for run in rounds)


def _flood(bench: Bench, proxy: Proxy, request: Request) -> Callable[[], Run]:
    def measure() -> Run:
        return bench.load.flood(proxy, request, connections=CONCURRENCY, seconds=bench.plan.seconds)

    return measure


def _post(bench: Bench) -> Outcome:
    return _costs(interleaved(bench, {n: _flood(bench, p, INFER) for n, p in bench.proxies().items()}))


def _beside_nginx(request: Request) -> Callable[[Bench], Outcome]:
    def measure(bench: Bench) -> Outcome:
        measured = bench.proxies(bench.narrow(NGINX))
        return _costs(interleaved(bench, {n: _flood(bench, p, request) for n, p in measured.items()}))

    return measure


def _chat(bench: Bench) -> Outcome:
    proxies = bench.proxies(bench.narrow())
    measures = {name: _flood(bench, proxy, CHAT) for name, proxy in proxies.items()}
    measures[OURS_INFER] = _flood(bench, proxies[ours.OURS], INFER)
    return _costs(interleaved(bench, measures))


def _workers(bench: Bench) -> Outcome:
    proxies = bench.proxies((NGINX,))
    pairs = {two: one for two, one in ((TWO, ours.OURS), (NGINX_TWO, NGINX)) if one in proxies}
    proxies |= {two: bench.two_workers(two) for two in pairs}
    outcome = _costs(interleaved(bench, {n: _flood(bench, p, INFER) for n, p in proxies.items()}))
    for two, one in pairs.items():
        cost = outcome.figures[two]["cpu_us"]
        outcome.figures[two]["cpu_over_one"] = verdicts.ratios(cost, outcome.figures[one]["cpu_us"])
    return outcome


def _sse(bench: Bench) -> Outcome:
    # Windows of one stream: as many begin in one as end. What an event costs where a core sleeps between two of them
    # differs from one second to the next, so there are more rounds in place of longer ones.
    seconds = CHUNKS * CHUNK_GAP_US / 1e6
    rounds = bench.plan.rounds * max(1, round(bench.plan.seconds / seconds))

    def events(proxy: Proxy) -> Callable[[], Run]:
        return lambda: bench.load.flood(proxy, STREAM, connections=STREAMS, seconds=seconds, unit=Unit.EVENTS)

    runs = interleaved(bench, {n: events(p) for n, p in bench.proxies(bench.narrow(NGINX)).items()}, rounds)
    figures = {
        name: {
            "cpu_us": [CHUNKS * run.cpu_us for run in rounds],
            "cpu_us_per_event": [run.cpu_us for run in rounds],
            "events_per_s": [run.done / run.seconds for run in rounds],
        }
        for name, rounds in runs.items()
    }
    return Outcome(figures, _failed(runs))


def _rate(bench: Bench) -> Outcome:
    requests = round(RATE * bench.plan.seconds)

    def paced(proxy: Proxy) -> Callable[[], Run]:
        def measure() -> Run:
            bench.load.count(proxy, INFER, connections=RATE_CONNECTIONS, requests=RATE_WARM)
            return bench.load.pace(proxy, INFER, connections=RATE_CONNECTIONS, requests=requests, rate=RATE)

        return measure

    proxies = {DIRECT: bench.direct, **bench.proxies(bench.narrow(NGINX))}
    runs = interleaved(bench, {name: paced(proxy) for name, proxy in proxies.items()})
    figures = {}
    for name, rounds in runs.items():
        figures[name] = {"p50_us": [run.p50_us for run in rounds], "p99_us": [run.p99_us for run in rounds]}
        if name != DIRECT:
            pairs = list(zip(rounds, runs[DIRECT], strict=True))
            figures[name]["added_p50_us"] = [run.p50_us - base.p50_us for run, base in pairs]
            figures[name]["added_p99_us"] = [run.p99_us - base.p99_us for run, base in pairs]
            figures[name]["cpu_us"] = [run.cpu_us for run in rounds]
    return Outcome(figures, _failed(runs))


def _idle(bench: Bench) -> Outcome:
    outcome = Outcome()
    for name in bench.names(bench.narrow()):
        try:
            with bench.start(name, "-idle") as proxy:
                outcome.figures[name] = {k: [v] for k, v in idle.measure(proxy, bench.load).items()}
        except programs.Missing as error:
            bench.missing[name] = str(error)
    return outcome


def _soak(bench: Bench) -> Outcome:
    with bench.start(ours.OURS, "-soak") as proxy:
        figures, failed = soak.measure(proxy, bench.load)
    return Outcome({ours.OURS: {name: [value] for name, value in figures.items()}}, failed)


SCENARIOS: Final[Mapping[str, Callable[[Bench], Outcome]]] = {
    "idle": _idle,
    "post": _post,
    "varied": _beside_nginx(VARIED),
    "tensor": _beside_nginx(TENSOR),
    "sse": _sse,
    "burst": _beside_nginx(BURST),
    "chat": _chat,
    "workers": _workers,
    "rate": _rate,
    "soak": _soak,
}
#: The soak takes minutes and is run when asked for.
DEFAULT: Final = tuple(name for name in SCENARIOS if name != "soak")
DEFAULT_QUICK: Final = tuple(name for name in DEFAULT if name not in ("burst", "varied"))
#: Many short rounds: what else a machine does changes from one second to the next.
QUICK: Final = Plan(rounds=5, seconds=0.2, total_s=36, narrow=True)
FULL: Final = Plan(rounds=15, seconds=1, total_s=math.inf, narrow=False)


def run(bench: Bench, names: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
    """One scenario after the other; each has an equal share of the time that is left."""
    end = time.monotonic() + bench.plan.total_s
    for index, name in enumerate(names):
        now = time.monotonic()
        bench.until = now + (end - now) / (len(names) - index)
        yield name, SCENARIOS[name](bench)

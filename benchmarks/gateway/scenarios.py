"""What is measured, scenario by scenario, in interleaved rounds: A, B, C, A, B, C, ...

Before each run the same proxy is warmed. Proxies are started once for all scenarios; only memory is measured on one
that was started for it, and before the others: what several processes map is divided among them in PSS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.gateway import idle, ours, peers, programs, soak
from benchmarks.gateway.cost import Cores
from benchmarks.gateway.load import Generators, Run
from benchmarks.gateway.peers import NGINX, Place, Proxy
from benchmarks.gateway.traffic import BURST, CHAT, CHUNKS, INFER, STREAM, TENSOR, Request
from benchmarks.gateway.verdicts import Outcome
from benchmarks.local import free_ports

CONCURRENCY: Final = 64
#: Of `sse`: streams at once, and microseconds between two chunks of one. Together 6,400 chunks a second, so that even
#: the naive proxy keeps up and none saves by taking several at once.
STREAMS: Final = 16
CHUNK_GAP_US: Final = 2500
RATE: Final = 500
RATE_CONNECTIONS: Final = 16
REPLICAS: Final = 2
TWO: Final = "ours two workers"
OURS_INFER: Final = "ours infer"
DIRECT: Final = "direct"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of a run."""
    narrow: bool
    """Whether only `post` has all peers, and the rest those that its bars are about."""


class Bench:
    """What all scenarios share: the upstream, the load generators, and the proxies that run."""

    def __init__(self, folder: Path, cores: Cores, plan: Plan, names: Sequence[str], envoy: Path | None) -> None:
        """`names` are the peers'. Raises programs.Missing where wrk or a compiler is not there."""
        self.plan = plan
        self.missing: dict[str, str] = {}
        """Why a peer was left out."""
        self._folder = folder
        self._cores = cores
        self._names = names
        self._envoy = envoy
        self._stack = ExitStack()
        self._running: dict[str, Proxy] = {}
        self.load = Generators(folder, cores.load)
        self._upstream_program = programs.compiled(folder, "upstream")
        self.upstream = free_ports(REPLICAS)

    def __enter__(self) -> Bench:
        argv: list[str | Path] = [self._upstream_program, str(CHUNK_GAP_US), *map(str, self.upstream)]
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

    def two_workers(self) -> Proxy:
        """Ours once more, with two workers."""
        if TWO not in self._running:
            place = self.place(TWO, self._cores.pair)
            self._running[TWO] = self._stack.enter_context(ours.running(place, 2, TWO))
        return self._running[TWO]

    @contextmanager
    def start(self, name: str, suffix: str = "") -> Iterator[Proxy]:
        """A proxy of its own. Raises programs.Missing and programs.Failed."""
        place = self.place(name + suffix)
        with ours.running(place) if name == ours.OURS else peers.running(name, place) as proxy:
            yield proxy

    def narrow(self, *wanted: str) -> Sequence[str] | None:
        """These peers where little is to be measured, else all."""
        return wanted if self.plan.narrow else None


def interleaved(rounds: int, measures: Mapping[str, Callable[[], Run]]) -> Outcome:
    """Every one once a round, round after round."""
    outcome = Outcome()
    runs: dict[str, list[Run]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            runs[name].append(measure())
    for name, all_of in runs.items():
        outcome.failed += sum(run.failed for run in all_of)
        outcome.figures[name] = {
            "cpu_us": [run.cpu_us for run in all_of],
            "requests_per_s": [run.requests / run.seconds for run in all_of],
        }
    return outcome


def _flood(bench: Bench, proxy: Proxy, request: Request) -> Callable[[], Run]:
    def measure() -> Run:
        return bench.load.flood(proxy, request, connections=CONCURRENCY, seconds=bench.plan.seconds)

    return measure


def _post(bench: Bench) -> Outcome:
    return interleaved(bench.plan.rounds, {n: _flood(bench, p, INFER) for n, p in bench.proxies().items()})


def _beside_nginx(request: Request) -> Callable[[Bench], Outcome]:
    def measure(bench: Bench) -> Outcome:
        measured = bench.proxies(bench.narrow(NGINX))
        return interleaved(bench.plan.rounds, {n: _flood(bench, p, request) for n, p in measured.items()})

    return measure


def _chat(bench: Bench) -> Outcome:
    proxies = bench.proxies(bench.narrow())
    measures = {name: _flood(bench, proxy, CHAT) for name, proxy in proxies.items()}
    measures[OURS_INFER] = _flood(bench, proxies[ours.OURS], INFER)
    return interleaved(bench.plan.rounds, measures)


def _workers(bench: Bench) -> Outcome:
    proxies = {**bench.proxies(()), TWO: bench.two_workers()}
    return interleaved(bench.plan.rounds, {n: _flood(bench, p, INFER) for n, p in proxies.items()})


def _sse(bench: Bench) -> Outcome:
    seconds_each = CHUNKS * CHUNK_GAP_US / 1e6
    requests = STREAMS * max(1, round(bench.plan.seconds / seconds_each))

    def counted(proxy: Proxy) -> Callable[[], Run]:
        def measure() -> Run:
            bench.load.warm(proxy, INFER, STREAMS)
            return bench.load.count(proxy, STREAM, connections=STREAMS, requests=requests)

        return measure

    outcome = interleaved(bench.plan.rounds, {n: counted(p) for n, p in bench.proxies(bench.narrow(NGINX)).items()})
    for figures in outcome.figures.values():
        figures["cpu_us_per_chunk"] = [cost / CHUNKS for cost in figures["cpu_us"]]
    return outcome


def _rate(bench: Bench) -> Outcome:
    outcome = Outcome()
    proxies = {DIRECT: bench.direct, **bench.proxies(bench.narrow(NGINX))}
    runs: dict[str, list[Run]] = {name: [] for name in proxies}
    requests = round(RATE * bench.plan.seconds)
    for _ in range(bench.plan.rounds):
        for name, proxy in proxies.items():
            bench.load.warm(proxy, INFER, RATE_CONNECTIONS)
            run = bench.load.pace(proxy, INFER, connections=RATE_CONNECTIONS, requests=requests, rate=RATE)
            outcome.failed += run.failed
            runs[name].append(run)
    for name in proxies:
        rounds = list(zip(runs[name], runs[DIRECT], strict=True))
        figures = {"p50_us": [run.p50_us for run, _ in rounds], "p99_us": [run.p99_us for run, _ in rounds]}
        if name != DIRECT:
            figures["added_p50_us"] = [run.p50_us - base.p50_us for run, base in rounds]
            figures["added_p99_us"] = [run.p99_us - base.p99_us for run, base in rounds]
            figures["cpu_us"] = [run.cpu_us for run, _ in rounds]
        outcome.figures[name] = figures
    return outcome


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
    return Outcome({ours.OURS: {k: [v] for k, v in figures.items()}}, failed)


SCENARIOS: Final[Mapping[str, Callable[[Bench], Outcome]]] = {
    "idle": _idle,
    "post": _post,
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
#: Many short rounds: what else a machine does changes from one second to the next.
QUICK: Final = Plan(rounds=5, seconds=0.25, narrow=True)
FULL: Final = Plan(rounds=15, seconds=1, narrow=False)

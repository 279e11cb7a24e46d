"""`tangram replay TRACE.csv`: a trace through the loop's autoscaler, or through others, on virtual time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, get_args

from autoscaler.replay import PolicyName, replay, text_plot
from autoscaler.simulate import Outcome, Workload
from autoscaler.trace import Trace, parse
from tangram.cli.client import CommandError
from tangram.core import convert
from tangram.spec import Model, SpecError, load_documents

POLICIES: Final = get_args(PolicyName)
#: Share of what a replica can do at which a target is usually set.
_TARGET_SHARE: Final = 0.7
#: Points across a picture.
_COLUMNS: Final = 1000


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What `tangram replay` was told."""

    trace: Path
    model: str
    """FILE#NAME."""
    policies: Sequence[PolicyName] = ("ours",)
    service_s: float | None = None
    slots: int | None = None
    cv: float = 0.5
    slo_wait_s: float = 1.0
    start_s: float = 20.0
    scale: float = 1.0
    bins: str = ""
    began: datetime | None = None
    """When the trace began, in UTC."""
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Replayed:
    """One policy's run."""

    policy: str
    outcome: Outcome

    def figures(self) -> dict[str, Any]:
        """For -o json."""
        run = self.outcome
        return {
            "policy": self.policy,
            "requests": run.requests,
            "violations": run.violations,
            "violationPercent": round(run.violation_share, 3),
            "timeouts": run.timeouts,
            "replicaSeconds": round(run.cost, 1),
            "coldStarts": run.cold_starts,
            "peakReplicas": run.peak,
            "seconds": run.seconds,
        }


def policies_of(text: str) -> tuple[PolicyName, ...]:
    """What `--policy ours,hpa` says. Raises CommandError."""
    named = [part.strip() for part in text.split(",")]
    for name in named:
        if name not in POLICIES:
            raise CommandError(f"--policy: {name!r} is not known; choose of {', '.join(POLICIES)}", 2)
    return tuple(p for p in POLICIES if p in named)


def run(options: ReplayOptions) -> tuple[Workload, list[Replayed]]:
    """Replay the trace through each policy, all with the same requests. Raises CommandError."""
    import numpy as np

    model = _model(options.model)
    workload = _workload(options, model)
    if model.spec.scaling.schedules and options.began is None:
        raise CommandError(f"--began: model {model.name} has schedules; say when the trace began, as 2026-03-02", 2)
    began = None if options.began is None else options.began.replace(tzinfo=UTC)
    # What a simulated replica does at once is what the gateway would give it at most.
    policy = dataclasses.replace(convert.scaling_policy(model), concurrency_limit=workload.slots, advisory=False)
    runs = [
        Replayed(
            name,
            replay(
                workload,
                policy,
                name,
                options.start_s,
                np.random.default_rng(options.seed),
                np.random.default_rng(options.seed + 1),
                began,
            ),
        )
        for name in options.policies
    ]
    return workload, runs


def _model(text: str) -> Model:
    file, mark, name = text.rpartition("#")
    if not mark or not file or not name:
        raise CommandError(f"--model: {text!r} is not FILE#NAME; write for example fleet.yaml#digits", 2)
    try:
        models = {m.name: m for m in load_documents(Path(file)).models}
    except SpecError as error:
        raise CommandError(str(error), 2) from None
    if name not in models:
        raise CommandError(f"--model: {file} declares no model {name!r}; there are: {', '.join(models) or 'none'}", 2)
    return models[name]


def _workload(options: ReplayOptions, model: Model) -> Workload:
    slots = options.slots or model.spec.traffic.concurrency_per_replica or 1
    target = model.spec.scaling.target_qps
    service_s = options.service_s
    if service_s is None:
        if target is None:
            raise CommandError("--service: give the mean seconds of a request; the model has no targetQPS to go by", 2)
        service_s = _TARGET_SHARE * slots / target
    trace = _trace(options).scaled(options.scale)
    return Workload(model.name, trace, slots, service_s, options.cv, options.slo_wait_s)


def _trace(options: ReplayOptions) -> Trace:
    try:
        trace = parse(options.trace.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CommandError(f"{options.trace}: cannot be read: {reason}", 2) from None
    except ValueError as error:
        raise CommandError(f"{options.trace}: {error}", 2) from None
    if not options.bins:
        return trace
    first, _, last = options.bins.partition("..")
    if not (first.isdecimal() and last.isdecimal()):
        raise CommandError(f"--bins: {options.bins!r} is not FIRST..LAST; write for example 0..720", 2)
    try:
        return trace.part(int(first), int(last))
    except ValueError as error:
        raise CommandError(f"--bins: {error}", 2) from None


def text(workload: Workload, runs: Sequence[Replayed], width: int | None) -> str:
    """What was assumed, a table of figures, and a plot of each run."""
    lines = [
        f"{workload.trace.seconds / 3600:.2f} h of {workload.trace.mean_rate:.3g} requests/s on average; a replica is "
        f"taken to do {workload.capacity:.3g} a second ({workload.slots} at once, {workload.service_s:.3g} s each); "
        f"late is a wait of more than {workload.slo_s:g} s",
        "",
        f"{'POLICY':8}{'REQUESTS':>10}{'LATE':>9}{'LATE %':>8}{'REPLICA-S':>11}{'COLD STARTS':>13}{'PEAK':>6}",
    ]
    for one in runs:
        f = one.figures()
        lines.append(
            f"{one.policy:8}{f['requests']:>10}{f['violations']:>9}{f['violationPercent']:>8.2f}"
            f"{f['replicaSeconds']:>11.0f}{f['coldStarts']:>13}{f['peakReplicas']:>6}"
        )
    for one in runs:
        lines += ["", one.policy, text_plot(one.outcome, max(20, (width or 100) - 20))]
    return "\n".join(lines)


def picture(workload: Workload, runs: Sequence[Replayed], path: Path) -> None:
    """Load, replicas and late requests as a PNG; needs the extra `plot`. Raises CommandError."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise CommandError("--png: needs matplotlib; install tangram-serving[plot]", 1) from None
    unit, length_s = next((u, s) for u, s in (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0)) if _long(runs, s))
    figure = Figure(figsize=(11, 7), layout="constrained")
    load, replicas, late = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 2))
    times, rates = _means(runs[0].outcome.series.arrivals)
    load.plot([t / length_s for t in times], rates, color="0.4", linewidth=0.8)
    load.set_ylabel("requests/s")
    load.set_title(f"{workload.name}: late is a wait of more than {workload.slo_s:g} s", loc="left", fontsize="medium")
    # The first is drawn last, so that it is not hidden where policies agree.
    for number, one in reversed(list(enumerate(runs))):
        times, lates = _means(one.outcome.series.late)
        run, color = one.outcome, f"C{number}"
        label = f"{one.policy}: {run.violation_share:.2f}% late, {run.cost:,.0f} replica-s, peak {run.peak:g}"
        seconds = [t / length_s for t in range(run.seconds)]
        replicas.step(seconds, run.series.total, label=label, linewidth=1.2, color=color, where="post")
        late.plot([t / length_s for t in times], lates, linewidth=1.0, color=color)
    replicas.set_ylabel("replicas")
    replicas.yaxis.set_major_locator(MaxNLocator(integer=True))
    replicas.margins(y=0.25)
    handles, labels = replicas.get_legend_handles_labels()
    replicas.legend(handles[::-1], labels[::-1], loc="upper left", fontsize="small", framealpha=0.9)
    late.set_ylabel("late/s")
    late.set_xlabel(unit)
    for axes in (load, replicas, late):
        axes.set_ylim(bottom=0)
        axes.margins(x=0.0)
        axes.grid(alpha=0.3, linewidth=0.5)
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise CommandError(f"--png {path}: cannot be written: {error.strerror}", 1) from None


def _long(runs: Sequence[Replayed], unit_s: float) -> bool:
    return runs[0].outcome.seconds >= 5 * unit_s or unit_s == 1.0


def _means(values: Sequence[int]) -> tuple[list[float], list[float]]:
    """Middles (seconds) and means of stretches of 10 s, longer ones where a picture has fewer columns than that."""
    size = max(10, -(-len(values) // _COLUMNS))
    starts = range(0, len(values), size)
    stretches = [values[i : i + size] for i in starts]
    return [i + len(s) / 2 for i, s in zip(starts, stretches, strict=True)], [sum(s) / len(s) for s in stretches]

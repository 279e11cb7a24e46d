"""`make load`: two minutes of stepped load, with the replicas watched meanwhile. The exit code is 1 if a bar is missed.

Locust runs headless in an interpreter of its own (`import locust` patches the standard library, and its packages are
not ours); this program looks at the admin API every second, and joins both at the end. A Tangram that runs already is
used as it is; if none does, `examples/fleet.yaml` is started for the time of the load.

    python -m loadtests.run [--state DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from benchmarks import local
from benchmarks.admin import Admin, AdminError
from loadtests import plan, report
from loadtests.look import sample
from loadtests.report import Requests, Sample

ROOT: Final = Path(__file__).resolve().parent.parent
MODEL: Final = "digits"
INTERVAL_S: Final = 1.0
#: Locust's own start and end, beyond the load itself.
_MARGIN_S: Final = 60.0


class CannotRun(Exception):
    """What is missing, and the mend."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make load", description=__doc__.partition("\n")[0])
    parser.add_argument("--state", type=Path, default=ROOT / ".tangram", help="state directory of a running Tangram")
    parser.add_argument("--python", default=str(ROOT / ".venv-load/bin/python"), help="interpreter that has Locust")
    parser.add_argument("--json", action="store_true", help="print one line of JSON; all else goes to standard error")
    options = parser.parse_args(arguments)
    out = sys.stderr if options.json else sys.stdout
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tangram-load-")))
            admin = find(options.state) or stack.enter_context(_own(folder, out))
            result = drive(admin, options.python, folder, out)
    except (CannotRun, local.StartFailed, AdminError) as error:
        print(f"make load: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(result))
    return 0 if all(bar["met"] for bar in result["bars"].values()) else 1


def find(state: Path) -> Admin | None:
    """The Tangram that runs on this state directory, if one does."""
    try:
        admin = Admin(state)
        admin.get("/status")
    except AdminError:
        return None
    return admin


def _own(folder: Path, out: IO[str]) -> Any:
    print("no Tangram is running here: starting examples/fleet.yaml for the time of the load", file=out, flush=True)
    return local.running(folder / "state", folder / "up.log", str(ROOT / "examples/fleet.yaml"))


def target(admin: Admin) -> tuple[float, int]:
    """(targetQPS, most replicas) of the stepped model; CannotRun when it cannot be stepped."""
    models = {m["name"]: m for m in admin.get("/models")["items"]}
    if MODEL not in models:
        raise CannotRun(f"the running Tangram has no model {MODEL!r}; start it with examples/fleet.yaml")
    model = models[MODEL]
    if model.get("fixedReplicas") is not None:
        raise CannotRun(f"{MODEL} has a fixed count of replicas; `tangram set {MODEL} --replicas auto` lets it scale")
    if not model.get("targetQPS"):
        raise CannotRun(f"{MODEL} has no targetQPS; `tangram set {MODEL} --target-qps 20` gives it one")
    return model["targetQPS"], model["maxReplicas"]


def drive(admin: Admin, python: str, folder: Path, out: IO[str]) -> dict[str, Any]:
    """Run the load, print what it says, and return it with its bars."""
    target_qps, most = target(admin)
    planned = plan.steps(target_qps, most)
    rates = ", ".join(f"{s.rate:.0f}" for s in planned)
    print(f"{planned[-1].end:.0f} s against {admin.gateway}: {MODEL} at {rates} requests/s", file=out, flush=True)
    events, log = folder / "events.jsonl", folder / "locust.log"
    events.touch()
    command = [python, "-m", "locust", "-f", "loadtests/locustfile.py,loadtests/shapes.py", "--headless"]
    command += ["--only-summary", "--host", admin.gateway, "--stop-timeout", "10", "--exit-code-on-error", "0"]
    command += ["--target-qps", str(target_qps), "--peak-replicas", str(most), "--events", str(events)]
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise CannotRun(f"{python} cannot be started ({error.strerror}); `make load` sets it up") from error
    try:
        timeline = watch(admin, process, planned[-1].end + _MARGIN_S, out)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    told = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    results = next((e for e in told if e["event"] == "results"), None)
    begins = [e["at"] for e in told if e["event"] == "step"]
    if results is None or len(begins) != len(planned):
        raise CannotRun(f"Locust did not finish (exit code {process.returncode}):\n{local.tail(log)}")
    requests = [Requests(**row) for row in results["requests"]]
    ends = [*begins[1:], begins[-1] + plan.STEP_SECONDS]
    followed = [
        report.follow(timeline, MODEL, step, began, ended)
        for step, began, ended in zip(planned, begins, ends, strict=True)
    ]
    verdicts = report.bars(requests, followed, timeline, begins[0], ends[-1])
    print("\n" + report.render(requests, followed, timeline, verdicts), file=out)
    for text, count in sorted(results["errors"].items()):
        print(f"  {count} x {text}", file=out)
    return {
        "benchmark": "load",
        "requests": [asdict(r) for r in requests],
        "steps": [{**asdict(f.step), "seconds": f.seconds, "held": f.held} for f in followed],
        "errors": results["errors"],
        "bars": {name: asdict(bar) for name, bar in verdicts.items()},
    }


def watch(admin: Admin, process: subprocess.Popen[bytes], most_s: float, out: IO[str]) -> list[Sample]:
    """Look every second until Locust ends; a look that fails is left out, and shows in `unwatched_s`."""
    timeline: list[Sample] = []
    live = Live(out)
    began = time.monotonic()
    due = began
    while process.poll() is None and time.monotonic() - began < most_s:
        try:
            timeline.append(sample(admin, time.time()))
            live.show(time.monotonic() - began, timeline[-1], admin.get("/models")["items"])
        except AdminError as error:
            live.say(f"the admin API did not answer: {error}")
        due += INTERVAL_S
        time.sleep(max(0.0, due - time.monotonic()))
    live.end()
    return timeline


class Live:
    """One line that is written over on a terminal; elsewhere a line every five seconds."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._shown = -5.0

    def show(self, elapsed: float, look: Sample, models: Sequence[dict[str, Any]]) -> None:
        if not self._terminal and elapsed - self._shown < 5:
            return
        self._shown = elapsed
        rate = sum(m["qps"] or 0 for m in models)
        counts = []
        for name, count in sorted(look.models.items()):
            coming = f"+{count.starting}" if count.starting else ""
            going = f"-{count.draining}" if count.draining else ""
            counts.append(f"{name} {count.ready}{coming}{going}")
        spread = " ".join(f"{name}:{sum(d.replicas.values())}" for name, d in sorted(look.devices.items()))
        self.say(f"{elapsed:4.0f} s  {rate:5.1f} req/s  {'  '.join(counts)}  | {spread}")

    def say(self, text: str) -> None:
        if self._terminal:
            self._out.write(f"\r\x1b[2K{text}")
        else:
            self._out.write(text + "\n")
        self._out.flush()

    def end(self) -> None:
        if self._terminal:
            self._out.write("\n")


if __name__ == "__main__":
    sys.exit(main())

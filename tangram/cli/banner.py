"""What `tangram up` prints once everything answers: `python -m tangram.cli.banner --state DIR`, short-lived.

Waits until the gateway and every model's least number of replicas are ready (or a minute has passed; a model that has
no place or fails to start is not waited for), then prints the addresses and, for each model, one curl line that works
as printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tangram.cli.client import CommandError, connect, reachable, read_endpoints, segment
from tangram.control.paths import StatePaths

#: Annotation of a Model: {"path": ..., "body": ...} of a request that it answers.
EXAMPLE: Final = "tangram.dev/example"
WAIT_S: Final = 60.0
_POLL_S: Final = 0.2
#: Seconds after which it is said what is waited for.
_SAY_AFTER_S: Final = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point, as the supervisor starts it."""
    parser = argparse.ArgumentParser(prog="tangram-banner")
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--admin", help="URL of the admin API, where it is not as endpoints.json says")
    parser.add_argument("--wait", type=float, default=WAIT_S, help="seconds")
    options = parser.parse_args(argv)
    try:
        found = wait_until_ready(options.state, options.admin, options.wait)
        text = "tangram: the controller does not answer yet; see " + str(StatePaths(options.state).log("controller"))
        if found is not None:
            text = banner(*found, state=options.state)
        print(text, flush=True)
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


Overview = tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], Mapping[str, Mapping[str, Any]]]


def wait_until_ready(state: Path, admin: str | None, limit_s: float) -> Overview | None:
    """(status, models, spec of each model) once all is ready or the time is over; None if nobody ever answered."""
    parent, until = os.getppid(), time.monotonic() + limit_s
    say_at: float | None = time.monotonic() + _SAY_AFTER_S
    latest = None
    while True:
        latest = _look(state, admin) or latest
        if latest is not None and all_settled(*latest[:2]):
            return latest
        if say_at is not None and time.monotonic() >= say_at and latest is not None:
            say_at = None
            print(f"tangram: waiting for {', '.join(_awaited(latest[1])) or 'the gateway'}", flush=True)
        if time.monotonic() >= until or os.getppid() != parent:
            return latest
        time.sleep(_POLL_S)


def _look(state: Path, admin: str | None) -> Overview | None:
    try:
        client = connect(state, admin)
        status, models = client.get("/status"), client.get("/models")["items"]
        specs = {m["name"]: client.get(f"/models/{segment(m['name'])}/spec") for m in models}
    except CommandError:
        return None
    return status, models, specs


def all_settled(status: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the gateway serves, and each model is ready or known to have no place or to fail to start."""
    gateway = status["workers"] and all(w["connected"] and w["applied"] > [0, 0] for w in status["workers"])
    return bool(gateway) and not status["adopting"] and not _awaited(models)


def _awaited(models: Sequence[Mapping[str, Any]]) -> list[str]:
    return [m["name"] for m in models if not _ready(m) and not _hindered(m)]


def _hindered(model: Mapping[str, Any]) -> str:
    conditions = {c["type"]: c for c in model["conditions"] if c["status"] == "False"}
    return next((str(conditions[t]["reason"]) for t in ("Placed", "Progressing") if t in conditions), "")


def _ready(model: Mapping[str, Any]) -> bool:
    fixed = model["fixedReplicas"]
    least = model["desired"] if model["window"] else model["minReplicas"]
    return bool(model["ready"] >= (least if fixed is None else fixed))


def banner(
    status: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    specs: Mapping[str, Mapping[str, Any]],
    *,
    state: Path,
) -> str:
    """The text."""
    gateway = reachable(status["gateway"])
    lines = ["", f"Gateway   {gateway}"]
    shown = os.path.relpath(state) if state.is_relative_to(Path.cwd()) else str(state)
    option = "" if shown == ".tangram" else f" --state {shlex.quote(shown)}"
    lines += [f"Admin     {reachable(admin_of(state))} (token in {shown}/admin.token)", ""]
    if not models:
        lines.append("No models yet; add some with `tangram apply -f FILE`.")
    for model in models:
        note = "" if _ready(model) else f"   (not ready: {_hindered(model) or 'it still starts'})"
        lines += [f"# {model['name']}{note}", curl(gateway, specs[model["name"]], key=status["requireKey"])]
    if models and status["requireKey"]:
        lines += ["", f"A key comes from `tangram key create TENANT{option}`; put it in $KEY."]
    lines += ["", f"Look around with `tangram get models{option}` or `tangram top{option}`; stop with Ctrl-C."]
    return "\n".join(lines)


def admin_of(state: Path) -> str:
    """The admin API's URL as endpoints.json says."""
    return str(read_endpoints(StatePaths(state)).get("admin", ""))


def curl(gateway: str, spec: Mapping[str, Any], *, key: bool = False) -> str:
    """One line for a shell that asks the model something it answers, with the tenant's `key` in $KEY."""
    path, body = _example(spec)
    words = ["curl", "-sS"]
    if isinstance(body, Mapping) and body.get("stream") is True:
        words.append("-N")
    words.append(gateway + path)
    if body is not None:
        words += ["-H", "Content-Type: application/json", "-d", body if isinstance(body, str) else _compact(body)]
    return " ".join([*map(shlex.quote, words), *(['-H "X-API-Key: $KEY"'] if key else [])])


def _example(spec: Mapping[str, Any]) -> tuple[str, Any]:
    name = spec["metadata"]["name"]
    given = spec["metadata"].get("annotations", {}).get(EXAMPLE)
    if given is not None:
        try:
            example = json.loads(given)
            if isinstance(example["path"], str) and example["path"].startswith("/"):
                return example["path"], example.get("body")
        except (ValueError, KeyError, TypeError):
            pass
    match spec["spec"]["runtime"]["protocol"]:
        case "openai":
            return "/v1/completions", {"model": name, "prompt": "Hello", "max_tokens": 16}
        case "http":
            return f"/models/{name}/", None
    return f"/v2/models/{name}", None


def _compact(body: object) -> str:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())

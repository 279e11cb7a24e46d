"""From a Model and its place to the StartOrder of one Instance on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tangram.node.backend import StartError, StartOrder
from tangram.node.mechanisms.slices import SliceSettings
from tangram.node.processes import DEVICES
from tangram.spec import Model, Runtime, RuntimeKind

#: Instances listen here; only the gateway talks to them.
HOST: Final = "127.0.0.1"


def order(model: Model, instance: str, port: int, devices: Sequence[str], share: SliceSettings) -> StartOrder:
    """What to start on the devices of its slice, by id and in their order; `share` is what the slice's mechanism gives.

    Raises StartError where the model cannot run as a process on this machine.
    """
    runtime = model.spec.runtime
    env = {
        # What a server prints is seen in its log at once.
        "PYTHONUNBUFFERED": "1",
        "PATH": _path(),
        **{e.name: e.value for e in runtime.env},
        # The place it was given is not the model's to choose.
        **share.env,
        DEVICES: ",".join(devices),
        "PORT": str(port),
    }
    return StartOrder(
        instance=instance,
        model=model.name,
        revision=model.revision,
        argv=_argv(runtime, model.name, instance, port, len(devices)),
        env=env,
        port=port,
        working_dir=Path(runtime.working_dir) if runtime.working_dir else None,
        readiness_path=runtime.readiness.path,
        readiness_period_s=runtime.readiness.period_seconds,
        readiness_timeout_s=runtime.readiness.timeout_seconds,
        failure_threshold=runtime.readiness.failure_threshold,
        liveness_s=runtime.liveness.period_seconds * runtime.liveness.failure_threshold,
        cpu_cores=share.cpu_cores,
    )


def _argv(runtime: Runtime, model: str, instance: str, port: int, devices: int) -> tuple[str, ...]:
    if runtime.kind is RuntimeKind.EMBEDDED:
        # -P: a file in the working directory must not stand in for one of the server's own modules.
        server = (sys.executable, "-P", "-m", "tangram.node.runtimes.embedded")
        return (*server, "--model", runtime.model or "", "--name", model, "--host", HOST, "--port", str(port))
    if not runtime.command:
        raise StartError(
            f"model {model}: runtime.image runs on Kubernetes only; give runtime.command to run it on this machine"
        )
    values = {"{port}": str(port), "{host}": HOST, "{model}": model, "{replica}": instance}
    values["{devices}"] = str(devices)
    argv = []
    for argument in runtime.command:
        for name, value in values.items():
            argument = argument.replace(name, value)
        argv.append(argument)
    return tuple(argv)


def _path() -> str:
    # Programs of our own virtual environment are found last, whether or not it is activated.
    own = str(Path(sys.executable).parent)
    inherited = os.environ.get("PATH", os.defpath)
    return inherited if own in inherited.split(os.pathsep) else f"{inherited}{os.pathsep}{own}"

"""One look at a running Tangram, in the report's terms."""

from __future__ import annotations

from collections import Counter

from benchmarks.admin import Admin
from loadtests.report import Count, DeviceState, Sample


def sample(admin: Admin, at: float) -> Sample:
    """One look at everything the report needs."""
    status, models = admin.get("/status"), admin.get("/models")["items"]
    devices, replicas = admin.get("/devices")["items"], admin.get("/replicas")["items"]
    held: dict[str, Counter[str]] = {}
    for replica in replicas:
        held.setdefault(replica["device"], Counter())[replica["model"]] += 1
    return Sample(
        at=at,
        models={m["name"]: Count(m["ready"], m["starting"], m["draining"]) for m in models},
        devices={
            d["id"]: DeviceState(
                memory=d["memoryTotal"] - d["memoryReserve"],
                requested=d["memoryRequested"],
                compute=d["computeRequested"],
                replicas=dict(held.get(d["id"], {})),
            )
            for d in devices
        },
        oversold=tuple(status["oversold"]),
    )

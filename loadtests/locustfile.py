"""Users of the example models. By hand, from the repository's root:

    .venv-load/bin/locust -f loadtests/locustfile.py --host http://127.0.0.1:8080

`make load` adds `shapes.py` and watches the replicas meanwhile (`run.py`).

Every user sends at a constant rate, so that the rate of all is the number of users times that; each starts at a random
moment of its period, since users that Locust spawns together would otherwise knock together for ever.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import gevent
from locust import FastHttpUser, constant_throughput, events, task

from loadtests import plan, samples
from loadtests.report import percentile

_IMAGES: Final = samples.digits()


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    group = parser.add_argument_group("Tangram")
    group.add_argument("--target-qps", type=float, default=20.0, help="targetQPS of the digits model")
    group.add_argument("--peak-replicas", type=int, default=5, help="maxReplicas of the digits model")
    group.add_argument("--events", default="", help="file that takes one JSON line per step, and one of results")


class _Paced(FastHttpUser):
    abstract = True
    rate = 1.0
    """Requests per second of one user."""

    def wait_time(self) -> float:
        return constant_throughput(self.rate)(self)  # type: ignore[no-any-return]

    def on_start(self) -> None:
        gevent.sleep(random.random() / self.rate)

    def infer(self, model: str, inputs: Sequence[dict[str, Any]], expected: str) -> None:
        """One Open Inference Protocol request; an answer without the expected output is a failure."""
        url = f"/v2/models/{model}/infer"
        with self.client.post(url, json={"inputs": inputs}, name=model, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
                return
            outputs = {o["name"]: o for o in answer.json()["outputs"]}
            if not outputs.get(expected, {}).get("data"):
                answer.failure(f"no output {expected!r} among {sorted(outputs)}")


class Digits(_Paced):
    """Reads handwritten digits; the model whose load is stepped."""

    weight = 10

    def __init__(self, environment: Any) -> None:
        self.rate = plan.user_rate(environment.parsed_options.target_qps)
        super().__init__(environment)

    @task
    def read(self) -> None:
        image = {"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": [random.choice(_IMAGES)]}
        self.infer("digits", [image], "label")


class Embeddings(_Paced):
    """Looks for related sentences."""

    fixed_count = 2

    @task
    def embed(self) -> None:
        body = {"model": "embedder", "input": random.sample(samples.SENTENCES, 2)}
        with self.client.post("/v1/embeddings", json=body, name="embedder", catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
            elif len(answer.json()["data"]) != 2:
                answer.failure("not one embedding per sentence")


class Photographer(_Paced):
    """Filters pictures."""

    fixed_count = 1

    @task
    def soften(self) -> None:
        picture = samples.photograph(random.Random(random.getrandbits(32)))
        data = {"name": "image", "datatype": "UINT8", "shape": [32, 32, 3], "data": picture}
        self.infer("imagefilter", [data], "image")


class Reader(_Paced):
    """Reads a story as it is written (server-sent events)."""

    fixed_count = 2
    rate = 0.5

    @task
    def stream(self) -> None:
        body = {"model": "ngram", "prompt": random.choice(samples.PROMPTS), "max_tokens": 24, "stream": True}
        with self.client.post("/v1/completions", json=body, name="ngram", catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {(answer.text or '')[:200]}")
                return
            told = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
            if len(told) < 2 or told[-1] != "[DONE]":
                answer.failure("the stream ended before [DONE]")


# --- Results, for the program that started Locust -------------------------------------------------------------------

_milliseconds: dict[str, list[float]] = defaultdict(list)
_failures: dict[str, int] = defaultdict(int)
_errors: dict[str, int] = defaultdict(int)


@events.request.add_listener
def _count(name: str, response_time: float, exception: BaseException | None, **_: Any) -> None:
    _milliseconds[name].append(response_time)
    if exception is not None:
        _failures[name] += 1
        _errors[f"{name}: {exception}"] += 1


@events.quitting.add_listener
def _results(environment: Any, **_: Any) -> None:
    if not environment.parsed_options.events:
        return
    rows = []
    for name, times in sorted(_milliseconds.items()):
        times.sort()
        ranks = {f"p{p}": percentile(times, p) for p in (50, 95, 99)}
        rows.append({"name": name, "requests": len(times), "failures": _failures[name], **ranks})
    result = {"event": "results", "requests": rows, "errors": dict(_errors)}
    with open(environment.parsed_options.events, "a", encoding="utf-8") as file:  # noqa: PTH123
        file.write(json.dumps(result) + "\n")

"""`examples/fleet.yaml` and the lines of `examples/README.md`: they run as they stand."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from packer.inventory import Placement
from tangram.core import convert
from tangram.core.packing import pack
from tangram.spec import Model, Protocol, load_documents

from .conftest import EXAMPLES

PATIENCE_S = 20.0
DOCUMENTS = load_documents(EXAMPLES / "fleet.yaml")
MODELS = {model.name: model for model in DOCUMENTS.models}


def example_of(model: Model) -> tuple[str, Any]:
    given = json.loads(model.metadata.annotations["tangram.dev/example"])
    assert set(given) == {"path", "body"}
    return given["path"], given["body"]


def test_a_machine_with_two_cores_can_run_it() -> None:
    assert DOCUMENTS.fleet is not None
    devices = [device for node in DOCUMENTS.fleet.spec.nodes for device in node.devices]
    assert [len(node.devices) for node in DOCUMENTS.fleet.spec.nodes] == [2, 2]
    assert sum(device.cores for device in devices) <= 1200


def test_all_models_fit_at_their_largest() -> None:
    assert DOCUMENTS.fleet is not None
    devices = [device for node in DOCUMENTS.fleet.spec.nodes for device in node.devices]
    compute = [100] * len(devices)
    memory = [device.memory - device.reserve for device in devices]
    for model in sorted(MODELS.values(), key=lambda m: -m.spec.slice.compute):
        for _ in range(model.spec.scaling.max_replicas):
            i = max(range(len(devices)), key=lambda i: (compute[i], memory[i]))
            compute[i] -= model.spec.slice.compute
            memory[i] -= model.spec.slice.memory.effective_limit
    assert min(compute) >= 0
    assert min(memory) >= 0


def test_the_models_are_as_the_readme_says() -> None:
    assert set(MODELS) == {"digits", "embedder", "imagefilter", "ngram"}
    assert MODELS["imagefilter"].spec.scaling.min_replicas == 0
    assert MODELS["ngram"].spec.runtime.protocol is Protocol.OPENAI
    assert all(model.spec.scaling.target_qps for model in MODELS.values())


def test_readme_has_the_line_that_up_prints_for_each_model() -> None:
    lines = re.findall(r"^curl .*$", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {}
    for line in lines:
        words = shlex.split(line)
        url = next(word for word in words if word.startswith("http://127.0.0.1:8080"))
        shown[url.removeprefix("http://127.0.0.1:8080")] = json.loads(words[words.index("-d") + 1])
    assert shown == dict(example_of(model) for model in MODELS.values())


@contextmanager
def running(model: Model, log: Path) -> Iterator[int]:
    """The model's server as a process; its port."""
    argv = [sys.executable, "-m", "tangram.node.runtimes.embedded", "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*argv, "--model", str(model.spec.runtime.model), "--name", model.name], stderr=output
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while " is ready " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server never became ready"
            time.sleep(0.005)
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found is not None
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def ask(model: Model, log: Path) -> bytes:
    path, body = example_of(model)
    with running(model, log) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        assert response.status == 200, answer
        return answer


def outputs(answer: bytes) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}


def test_the_example_of_several_devices_gives_each_replica_a_linked_pair() -> None:
    documents = load_documents(EXAMPLES / "several-devices.yaml")
    assert documents.fleet is not None
    packed = pack(documents.models, convert.inventory(documents.fleet), {"ngram": 2})
    first, second = (r.result for r in packed.replicas)
    assert isinstance(first, Placement) and isinstance(second, Placement)
    assert first.why.startswith("2 devices joined by 4 NVLinks")
    assert second.why.startswith("2 devices behind one PCIe switch (PIX)")


@pytest.mark.integration
def test_digits_example_is_a_seven(tmp_path: Path) -> None:
    result = outputs(ask(MODELS["digits"], tmp_path / "log"))
    assert result["label"] == [7]
    assert result["probabilities"][7] > 0.99


@pytest.mark.integration
def test_embedder_example_finds_the_weather(tmp_path: Path) -> None:
    result = outputs(ask(MODELS["embedder"], tmp_path / "log"))
    corpus = dict(
        reversed(line.split("\t"))
        for line in (EXAMPLES / "models/embedder/corpus.tsv").read_text(encoding="utf-8").splitlines()
    )
    assert [corpus[sentence] for sentence in result["nearest"]][:2] == ["weather", "weather"]


@pytest.mark.integration
def test_imagefilter_example_blurs_a_square(tmp_path: Path) -> None:
    _, body = example_of(MODELS["imagefilter"])
    before = body["inputs"][0]["data"]
    after = outputs(ask(MODELS["imagefilter"], tmp_path / "log"))["image"]
    assert len(after) == len(before)
    assert max(after) < max(before)
    assert min(after) > min(before)


@pytest.mark.integration
def test_ngram_example_streams_text(tmp_path: Path) -> None:
    lines = ask(MODELS["ngram"], tmp_path / "log").decode().strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert len(text) == 120
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len(text.split()) > 10

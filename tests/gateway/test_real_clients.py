"""The clients that people use, through a worker, against real servers.

A real Triton needs an environment with `nvidia-pytriton`, which carries its binary (`make triton` makes one in
.venv-triton, TANGRAM_TRITON_VENV names another); without it those tests skip.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import openai
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from gateway import wire

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MODEL = """
import time
import numpy as np
from tangram.node.runtimes.embedded import Model, Tensor

class Sum(Model):
    inputs = [Tensor("x", "FP32", (-1, 4)), Tensor("text", "BYTES", (-1, 1), optional=True)]
    outputs = [Tensor("y", "FP32", (-1, 4)), Tensor("text", "BYTES", (-1, 1))]

    def predict(self, inputs):
        x = inputs["x"]
        return {"y": x * 2, "text": inputs.get("text", np.full((len(x), 1), b"", object))}

    def embed(self, texts):
        return np.array([[len(t), 0.5] for t in texts], np.float32)

    def generate(self, prompt, max_tokens, temperature, seed, stop):
        for n in range(4):
            time.sleep(0.05)
            yield f"{n} "

    def chat_prompt(self, messages):
        return messages[-1][1]
"""


def endpoint(port: int, name: str = "m") -> wire.EndpointEntry:
    return wire.EndpointEntry(id=f"{name}-0", host="127.0.0.1", port=port)


@pytest.fixture
def embedded(spawn, tmp_path, run_worker):
    """Port of a worker in front of an embedded server with model m."""
    path = tmp_path / "m.py"
    path.write_text(MODEL)
    program = [sys.executable, "-m", "tangram.node.runtimes.embedded", "--model", str(path), "--name", "m"]
    port = int(spawn([*program, "--port", "0"]).find(r"listening on http://[\d.]+:(\d+)")[1])
    ready(f"http://127.0.0.1:{port}/v2/health/ready")
    return run_worker(wire.ModelEntry(name="m", endpoints=(endpoint(port),))).port


def fetch(url: str, document: object = None) -> tuple[int, str, str]:
    """Status, kind and text of an answer; a document is posted as JSON."""
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"] or "", answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.read().decode()


def ready(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if fetch(url)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail(f"{url} never became ready")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_on_the_embedded_server(embedded, compression):
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{embedded}", concurrency=4) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.is_model_ready("m", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "tangram"
        assert client.get_model_metadata("m")["inputs"][0]["shape"] == [-1, 4]
        assert client.get_model_config("m")["name"] == "m"
        assert client.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        x = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
        text = np.array([[f"ä{n}".encode()] for n in range(10_000)], object)
        for binary in (True, False):
            inputs = [
                tritonclient.http.InferInput("x", list(x.shape), "FP32"),
                tritonclient.http.InferInput("text", list(text.shape), "BYTES"),
            ]
            inputs[0].set_data_from_numpy(x, binary_data=binary)
            inputs[1].set_data_from_numpy(text, binary_data=binary)
            wanted = [tritonclient.http.InferRequestedOutput(n, binary_data=binary) for n in ("y", "text")]
            result = client.infer(
                "m",
                inputs,
                outputs=wanted,
                request_compression_algorithm=compression,
                response_compression_algorithm=compression,
            )
            assert np.array_equal(result.as_numpy("y"), x * 2)
        running = [client.async_infer("m", inputs, outputs=wanted) for _ in range(8)]
        assert all(np.array_equal(r.get_result().as_numpy("y"), x * 2) for r in running)
        with pytest.raises(InferenceServerException, match="is not known here"):
            client.infer("other", inputs)
        for refused in (
            lambda: client.load_model("m"),
            lambda: client.unload_model("m"),
            lambda: client.update_log_settings({"log_verbose_level": 9}),
            lambda: client.get_trace_settings("m"),
            client.get_system_shared_memory_status,
        ):
            with pytest.raises(InferenceServerException, match="the gateway refuses it"):
                refused()


def test_the_openai_package(embedded):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{embedded}/v1", api_key="none", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["m"]
        assert client.models.retrieve("m").object == "model"
        assert client.embeddings.create(model="m", input=["four", "x"]).data[0].embedding == [4.0, 0.5]
        assert client.completions.create(model="m", prompt="p", max_tokens=2).choices[0].text == "0 1 "
        messages = [{"role": "user", "content": "hello"}]
        assert client.chat.completions.create(model="m", messages=messages).choices[0].message.content == "0 1 2 3 "
        with client.chat.completions.create(model="m", messages=messages, stream=True) as stream:
            came = [(time.monotonic(), c.choices[0].delta.content) for c in stream if c.choices[0].delta.content]
        assert "".join(text for _, text in came) == "0 1 2 3 "
        # The server makes one each 50 ms: what is held back anywhere would come at once.
        assert came[-1][0] - came[0][0] > 0.1
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="other", prompt="x")
        assert (missing.value.code, missing.value.type) == ("model_not_found", "invalid_request_error")
        assert missing.value.request_id
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.completions.create(model="m", prompt="x", temperature=9)


async def test_the_openai_package_streaming_many_at_once(embedded):
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{embedded}/v1", api_key="none", max_retries=0) as client:

        async def one() -> str:
            stream = await client.completions.create(model="m", prompt="p", stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        assert await asyncio.gather(*(one() for _ in range(8))) == ["0 1 2 3 "] * 8


async def test_files_and_responses_of_the_openai_package(gateway, replica):
    async def answer(seen, writer, reader):
        if "responses" in seen.target:
            document = {
                "id": "r",
                "object": "response",
                "created_at": 0,
                "model": "m",
                "output": [],
                "status": "completed",
            }
        elif "images" in seen.target:
            document = {"created": 0, "data": [{"b64_json": "eA=="}]}
        else:
            document = {"text": f"{len(seen.body)} bytes"}
        body = json.dumps(document).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    one = await replica(answer)
    gateway.model("m", one)
    base = f"http://127.0.0.1:{gateway.front.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        sound = os.urandom(3_000_000)
        heard = await client.audio.transcriptions.create(model="m", file=("a.wav", sound))
        assert int(heard.text.split()[0]) > len(sound)
        edited = await client.images.edit(model="m", image=("a.png", sound), prompt="more")
        assert edited.data is not None
        assert edited.data[0].b64_json == "eA=="
        await client.images.generate(model="m", prompt="a cat")
        assert (await client.responses.create(model="m", input="hello")).id == "r"
        assert [s.target for s in one.seen] == [
            "/v1/audio/transcriptions",
            "/v1/images/edits",
            "/v1/images/generations",
            "/v1/responses",
        ]
        assert sound in one.seen[0].body
        with pytest.raises(openai.NotFoundError):
            await client.audio.transcriptions.create(model="other", file=("a.wav", sound))


def test_curl(embedded, tool, tmp_path):
    curl = [tool("curl"), "-sS", "--max-time", "20", "-w", "\n%{http_code}"]
    base = f"http://127.0.0.1:{embedded}"
    big = tmp_path / "big.json"
    rows = [[1.0] * 4] * 50_000
    big.write_text(json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [50_000, 4], "data": rows}]}))

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([*curl, *arguments], capture_output=True, text=True, check=True)
        body, _, code = done.stdout.rpartition("\n")
        return int(code), body

    assert run(f"{base}/v2/health/ready") == (200, '{"ready": true}\n')
    assert run("-I", f"{base}/v2/models/m")[0] == 200
    # Larger than a megabyte: curl asks with Expect: 100-continue first.
    code, body = run("--data-binary", f"@{big}", f"{base}/v2/models/m/infer")
    assert (code, json.loads(body)["outputs"][0]["shape"]) == (200, [50_000, 4])
    chunked = ("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{big}")
    assert run(*chunked, f"{base}/v2/models/m/infer")[0] == 200
    assert run("--http1.0", "--data-binary", f"@{big}", f"{base}/v2/models/m/infer")[0] == 200
    assert run("-x", base, "http://any.example/v2/models/m/ready")[0] == 200
    assert run("-F", f"file=@{big}", "-F", "model=nobody", f"{base}/v1/audio/transcriptions")[0] == 404
    streamed = run("-N", "--json", '{"model": "m", "prompt": "p", "stream": true}', f"{base}/v1/completions")
    assert streamed[0] == 200
    assert streamed[1].count("data: ") == 6
    assert run("--path-as-is", f"{base}/models/m/../x")[0] == 400


# --- a real Triton ---


def triton_environment() -> Path:
    named = os.environ.get("TANGRAM_TRITON_VENV")
    folder = Path(named) if named else ROOT / ".venv-triton"
    if not (folder / "bin/python").exists():
        said = f"no environment with a Triton at {folder}; make triton makes one"
        if named:
            pytest.fail(said)
        pytest.skip(said)
    return folder


TRITON_MODEL = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        out = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
            out.append(pb_utils.InferenceResponse([pb_utils.Tensor("text_output", x)]))
        return out
"""
TRITON_CONFIG = """
name: "m"
backend: "python"
max_batch_size: 0
input [{ name: "text_input" data_type: TYPE_STRING dims: [ -1 ] }]
output [{ name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }]
instance_group [{ kind: KIND_CPU }]
"""


@pytest.fixture
def triton(spawn, tmp_path, run_worker):
    """Port of a worker in front of a real Triton with model m."""
    venv = triton_environment()
    ask = "import sys, sysconfig as s; print(s.get_path('purelib'), s.get_config_var('LIBDIR'), *sys.version_info[:2])"
    told = subprocess.run([venv / "bin/python", "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    home, libraries, version = Path(told[0]) / "pytriton/tritonserver", told[1], ".".join(told[2:])
    backends = tmp_path / "backends"
    shutil.copytree(home / "backends", backends)
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    model = tmp_path / "repository/m/1"
    model.mkdir(parents=True)
    (model / "model.py").write_text(TRITON_MODEL)
    (model.parent / "config.pbtxt").write_text(TRITON_CONFIG)
    ports = []
    held = []
    for _ in range(3):
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        ports.append(str(one.getsockname()[1]))
        held.append(one)
    for one in held:
        one.close()
    server = spawn(
        [
            str(home / "bin/tritonserver"),
            *(f"--model-repository={model.parents[1]}", f"--backend-directory={backends}"),
            *("--model-control-mode=explicit", "--load-model=m"),
            *("--http-address=127.0.0.1", f"--http-port={ports[0]}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={ports[2]}"),
        ],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": f"{libraries}:{home.parents[1] / 'nvidia_pytriton.libs'}",
            "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        },
    )
    ready(f"http://127.0.0.1:{ports[0]}/v2/health/ready")
    worker = run_worker(wire.ModelEntry(name="m", endpoints=(endpoint(int(ports[0])),)))
    yield worker.port
    # It waits for its connections to end before it does.
    worker.process.popen.terminate()
    worker.process.popen.wait(20)
    server.popen.terminate()
    server.popen.wait(20)


def test_tritonclient_on_a_real_triton(triton):
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{triton}", concurrency=4) as client:
        assert client.is_model_ready("m")
        assert client.get_model_metadata("m")["platform"] == "python"
        assert client.get_model_config("m")["backend"] == "python"
        words = np.array([f"ä{n}".encode() for n in range(50_000)], object)
        tensor = tritonclient.http.InferInput("text_input", [50_000], "BYTES")
        for binary in (True, False):
            tensor.set_data_from_numpy(words, binary_data=binary)
            wanted = [tritonclient.http.InferRequestedOutput("text_output", binary_data=binary)]
            for compression in (None, "gzip", "deflate"):
                result = client.infer(
                    "m",
                    [tensor],
                    outputs=wanted,
                    request_compression_algorithm=compression,
                    response_compression_algorithm=compression,
                )
                got = result.as_numpy("text_output")
                assert [x if isinstance(x, bytes) else x.encode() for x in got] == list(words)
        assert client.get_inference_statistics("m")["model_stats"][0]["inference_count"] >= 6
        with pytest.raises(InferenceServerException, match="the gateway refuses it"):
            client.unload_model("m")
        wrong = tritonclient.http.InferInput("no_such", [1], "INT32").set_data_from_numpy(np.zeros(1, np.int32))
        with pytest.raises(InferenceServerException, match=r"no_such|expected"):
            client.infer("m", [wrong])
    base = f"http://127.0.0.1:{triton}"
    said = fetch(f"{base}/v2/models/m/generate", {"text_input": "hello"})
    assert json.loads(said[2])["text_output"] == "hello"
    streamed = fetch(f"{base}/v2/models/m/generate_stream", {"text_input": "hello"})
    assert streamed[1].startswith("text/event-stream")
    assert json.loads(streamed[2].removeprefix("data: "))["text_output"] == "hello"
    assert fetch(f"{base}/v2/models/m/trace/setting", {})[0] == 403

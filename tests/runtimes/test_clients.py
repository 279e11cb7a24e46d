"""The clients that people use, against a real server."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tangram.node.runtimes.embedded.api import DATATYPES

from .conftest import Serve

pytestmark = pytest.mark.integration

MODEL = """
import numpy as np
from tangram.node.runtimes.embedded import Inputs, Model, Tensor
from tangram.node.runtimes.embedded.api import DATATYPES

class Echo(Model):
    inputs = [Tensor(t, t, (-1, 2), optional=True) for t in DATATYPES]
    outputs = [Tensor(t, t, (-1, 2)) for t in DATATYPES]

    def predict(self, inputs):
        if inputs.parameters.get("refuse"):
            raise ValueError("refused as asked")
        return inputs

    def embed(self, texts):
        return np.array([[len(t), t.count("a"), 0.25] for t in texts], np.float32)

    def generate(self, prompt, max_tokens, temperature, seed, stop):
        for n in range(5):
            yield f"{prompt.split()[-1] if n == 0 else n} "

    def chat_prompt(self, messages):
        return messages[-1][1]
"""


def sample(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[b"a", "ü".encode()], [b"", b"long" * 99]], object)
    return np.array([[0, 1], [1, 0]]).astype(triton_to_np_dtype(datatype))


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient(serve: Serve, compression: str | None) -> None:
    server = serve(MODEL)
    with tritonclient.http.InferenceServerClient(server.url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.is_model_ready("m", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "tangram-embedded"
        assert client.get_model_metadata("m")["inputs"][0] == {"name": "BOOL", "datatype": "BOOL", "shape": [-1, 2]}
        assert client.get_model_config("m")["input"][-1]["data_type"] == "TYPE_STRING"
        assert client.get_model_repository_index()[0]["state"] == "READY"
        for datatype in DATATYPES:
            for binary_in in (True, False):
                for binary_out in (True, False):
                    if datatype in ("FP16", "BF16") and not (binary_in and binary_out):
                        continue  # this client sends and reads them as binary data only
                    array = sample(datatype)
                    tensor = tritonclient.http.InferInput(datatype, list(array.shape), datatype)
                    tensor.set_data_from_numpy(array, binary_data=binary_in)
                    result = client.infer(
                        "m",
                        [tensor],
                        outputs=[tritonclient.http.InferRequestedOutput(datatype, binary_data=binary_out)],
                        request_id="7",
                        parameters={"note": "x"},
                        request_compression_algorithm=compression,
                    )
                    assert result.get_response()["id"] == "7"
                    got = result.as_numpy(datatype)
                    if datatype == "BYTES" and not binary_out:
                        array = np.array([[x.decode() for x in row] for row in array], object)
                    assert np.array_equal(got, array), (datatype, binary_in, binary_out)


def test_tritonclient_shows_our_errors(serve: Serve) -> None:
    server = serve(MODEL)
    with tritonclient.http.InferenceServerClient(server.url) as client:
        tensor = tritonclient.http.InferInput("FP32", [1, 2], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
        wanted = [tritonclient.http.InferRequestedOutput("FP32")]
        with pytest.raises(InferenceServerException, match="refused as asked"):
            client.infer("m", [tensor], outputs=wanted, parameters={"refuse": True})
        with pytest.raises(InferenceServerException, match="model 'other' is not served here"):
            client.infer("other", [tensor])


async def test_tritonclient_aio(serve: Serve) -> None:
    server = serve(MODEL)
    async with tritonclient.http.aio.InferenceServerClient(server.url) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("m"))["name"] == "m"
        for binary in (True, False):
            tensor = tritonclient.http.aio.InferInput("INT32", [1, 2], "INT32")
            tensor.set_data_from_numpy(np.array([[3, 4]], np.int32), binary_data=binary)
            wanted = tritonclient.http.aio.InferRequestedOutput("INT32", binary_data=binary)
            result = await client.infer("m", [tensor], outputs=[wanted])
            assert result.as_numpy("INT32").tolist() == [[3, 4]]


def test_openai_package(serve: Serve) -> None:
    server = serve(MODEL)
    with openai.OpenAI(base_url=f"http://{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [m.id for m in client.models.list()] == ["m"]
        assert client.models.retrieve("m").owned_by == "tangram"

        vectors = [[6.0, 3.0, 0.25], [1.0, 0.0, 0.25]]
        made = client.embeddings.create(model="m", input=["banana", "x"])
        assert [d.embedding for d in made.data] == vectors
        assert made.usage.prompt_tokens == 2
        made = client.embeddings.create(model="m", input=["banana", "x"], encoding_format="float")
        assert [d.embedding for d in made.data] == vectors
        made = client.embeddings.create(model="m", input=["banana", "x"], encoding_format="base64")
        raw = [base64.b64decode(str(d.embedding)) for d in made.data]
        assert [np.frombuffer(r, "<f4").tolist() for r in raw] == vectors

        done = client.completions.create(model="m", prompt="say cheese", max_tokens=3)
        assert done.choices[0].text == "cheese 1 2 "
        assert done.choices[0].finish_reason == "length"
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (2, 3)
        done = client.completions.create(model="m", prompt="cheese", max_tokens=99, stop=["2 "])
        assert (done.choices[0].text, done.choices[0].finish_reason) == ("cheese 1 ", "stop")

        messages = [{"role": "user", "content": "say cheese"}]
        chat = client.chat.completions.create(model="m", messages=messages)
        assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("cheese 1 2 3 4 ", "stop")

        with client.chat.completions.create(
            model="m", messages=messages, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        deltas = [c.choices[0].delta for c in chunks if c.choices]
        assert deltas[0].role == "assistant"
        assert "".join(d.content or "" for d in deltas) == "cheese 1 2 3 4 "
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 5

        with pytest.raises(openai.NotFoundError, match="model 'other' is not served here") as missing:
            client.completions.create(model="other", prompt="x")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="temperature: 9"):
            client.completions.create(model="m", prompt="x", temperature=9)


async def test_openai_package_async_streaming(serve: Serve) -> None:
    server = serve(MODEL)
    async with openai.AsyncOpenAI(base_url=f"http://{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="m", prompt="a b", max_tokens=2, stream=True)
        texts = [chunk.choices[0].text async for chunk in stream]
        assert "".join(texts) == "b 1 "

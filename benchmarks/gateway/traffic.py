"""The requests, byte for byte the same for every proxy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

#: The tenant's key; what it belongs to is in `ours`.
KEY: Final = "tgm_bench000000000000_benchbenchbenchbenchbenchbenchbenchbenchbe"
MODELS: Final = ("bench", "image")
#: Pixels of 224 x 224 in three colours, one byte each.
TENSOR_BYTES: Final = 224 * 224 * 3
CHUNKS: Final = 200
#: Stands for 16 hexadecimal digits that differ from request to request (wrk.lua).
NUMBER: Final = "@" * 16


@dataclass(frozen=True, eq=False)
class Request:
    """A POST that is sent again and again."""

    target: str
    fields: Mapping[str, str]
    body: bytes

    @cached_property
    def raw(self) -> bytes:
        """Its bytes."""
        fields = {"Host": "bench", **self.fields, "Content-Length": str(len(self.body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.target} HTTP/1.1\r\n{head}\r\n".encode() + self.body


def _fields(kind: str, **more: str) -> dict[str, str]:
    common = {"User-Agent": "python-client/1.0", "Accept": "*/*", "Authorization": f"Bearer {KEY}"}
    return {**common, "Content-Type": kind, **{name.replace("_", "-"): value for name, value in more.items()}}


def _filled(document: dict[str, object], size: int, fill: str) -> bytes:
    """The document as JSON of `size` bytes: `fill` occurs in it once and is repeated until it is as long."""
    text = json.dumps(document)
    lacking = size - len(text)
    return text.replace(fill, (fill * (lacking // len(fill) + 2))[: lacking + len(fill)], 1).encode()


def _infer(**more: str) -> Request:
    tensor = {"name": "x", "shape": [1, 158], "datatype": "FP32", "data": [0.25] * 158}
    fields = _fields("application/json", **more)
    return Request("/v2/models/bench/infer", fields, json.dumps({"inputs": [tensor]}).encode())


def _chat(target: str, *, stream: bool) -> Request:
    messages = [{"role": "system", "content": "Answer in short."}, {"role": "user", "content": "~why? "}]
    document = {"model": "bench", "messages": messages, "max_tokens": 200, "temperature": 0.7, "stream": stream}
    return Request(target, _fields("application/json"), _filled(document, 1024, "~why? "))


def _tensor() -> Request:
    header = {
        "inputs": [
            {
                "name": "image",
                "shape": [1, 224, 224, 3],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": TENSOR_BYTES},
            }
        ],
        "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(header).encode()
    fields = _fields("application/octet-stream", Inference_Header_Content_Length=str(len(text)))
    return Request("/v2/models/image/infer", fields, text + bytes(range(256)) * (TENSOR_BYTES // 256))


INFER: Final = _infer()
VARIED: Final = _infer(X_Request_Id=f"r-{NUMBER}", traceparent=f"00-{NUMBER}{NUMBER}-{NUMBER}-01")
CHAT: Final = _chat("/v1/chat/completions", stream=False)
STREAM: Final = _chat("/v2/models/bench/generate_stream", stream=True)
BURST: Final = _chat("/v2/models/bench/generate_stream?burst", stream=True)
TENSOR: Final = _tensor()

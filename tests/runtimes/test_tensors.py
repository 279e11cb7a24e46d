from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.node.runtimes.embedded import Inputs, Tensor
from tangram.node.runtimes.embedded.api import BadRequestError
from tangram.node.runtimes.embedded.tensors import (
    InferRequest,
    OutputError,
    decode_request,
    encode_response,
)

NUMBERS = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [1, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [-1.5, 65504.0],
    "BF16": [-1.5, 2.0**100],
    "FP32": [-1.5, 2.0**100],
    "FP64": [-1.5, 1e300],
}


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def entry(datatype: str, data: Any = None, shape: list[int] | None = None, **more: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": datatype, "shape": [2] if shape is None else shape, **more}
    return tensor if data is None else tensor | {"data": data}


def decode(body: bytes, spec: Tensor, length: int | None = None) -> np.ndarray:
    return decode_request(body, length, [spec], []).inputs["x"]


def flat(datatype: str) -> Tensor:
    return Tensor("x", datatype, (-1,))


def answer(datatype: str, array: Any, binary: bool, identity: str | None = None) -> Any:
    spec = Tensor("x", datatype, (-1,) * np.asarray(array).ndim)
    return encode_response(
        InferRequest(identity, Inputs(), (("x", binary),)), {"x": array}, [spec], model="m", version="1"
    )


@pytest.mark.parametrize("datatype", NUMBERS)
def test_json_round_trip_at_the_ends_of_the_range(datatype: str) -> None:
    array = decode(request(entry(datatype, NUMBERS[datatype])), flat(datatype))
    assert array.tolist() == NUMBERS[datatype]
    assert json.loads(answer(datatype, array, False).body)["outputs"] == [
        {"name": "x", "datatype": datatype, "shape": [2], "data": NUMBERS[datatype]}
    ]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_binary_round_trip(datatype: str) -> None:
    array = decode(request(entry(datatype, NUMBERS[datatype])), flat(datatype))
    sent = answer(datatype, array, True)
    blob = sent.body[sent.header_length :]
    head = json.loads(sent.body[: sent.header_length])["outputs"][0]
    assert head["parameters"] == {"binary_data_size": len(blob)}
    assert "data" not in head
    body = request(entry(datatype, parameters={"binary_data_size": len(blob)}))
    again = decode(body + blob, flat(datatype), len(body))
    assert again.dtype == array.dtype
    assert again.tolist() == array.tolist()


def test_bytes_in_json_are_strings_and_in_binary_have_their_length() -> None:
    spec = flat("BYTES")
    assert decode(request(entry("BYTES", ["ab", "ü"])), spec).tolist() == [b"ab", "ü".encode()]
    blob = struct.pack("<I", 2) + b"a\xff" + struct.pack("<I", 0)
    body = request(entry("BYTES", parameters={"binary_data_size": len(blob)}))
    array = decode(body + blob, spec, len(body))
    assert array.tolist() == [b"a\xff", b""]
    sent = answer("BYTES", array, True)
    assert sent.body[sent.header_length :] == blob
    with pytest.raises(ValueError, match="not UTF-8 text, which JSON cannot carry; ask for it with binary_data"):
        answer("BYTES", array, False)
    assert json.loads(answer("BYTES", np.array(["x", "ü"]), False).body)["outputs"][0]["data"] == ["x", "ü"]


def test_nested_json_data_is_row_major() -> None:
    spec = Tensor("x", "INT32", (-1, 2))
    nested = decode(request(entry("INT32", [[1, 2], [3, 4]], [2, 2])), spec)
    assert nested.tolist() == decode(request(entry("INT32", [1, 2, 3, 4], [2, 2])), spec).tolist()
    text = Tensor("x", "BYTES", (-1, 2))
    assert decode(request(entry("BYTES", [["a", "b"], ["c", "d"]], [2, 2])), text).tolist() == [
        [b"a", b"b"],
        [b"c", b"d"],
    ]


def test_empty_tensors() -> None:
    for datatype in (*NUMBERS, "BYTES"):
        assert decode(request(entry(datatype, [], [0])), flat(datatype)).shape == (0,)
        body = request(entry(datatype, None, [0], parameters={"binary_data_size": 0}))
        assert decode(body, flat(datatype), len(body)).shape == (0,)


def test_inputs_cannot_be_written_to_whichever_way_they_came() -> None:
    body = request(entry("FP32", parameters={"binary_data_size": 8}))
    for array in (
        decode(request(entry("FP32", [1, 2])), flat("FP32")),
        decode(body + bytes(8), flat("FP32"), len(body)),
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20),
    st.lists(st.binary(max_size=9), max_size=9),
)
def test_several_binary_inputs_follow_each_other(floats: list[float], texts: list[bytes]) -> None:
    one = np.array(floats, "<f4").tobytes()
    two = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [len(floats)], "parameters": {"binary_data_size": len(one)}},
        {"name": "j", "datatype": "BOOL", "shape": [1], "data": [True]},
        {"name": "b", "datatype": "BYTES", "shape": [len(texts)], "parameters": {"binary_data_size": len(two)}},
    ]
    head = json.dumps({"inputs": inputs}).encode()
    specs = [Tensor("a", "FP32", (-1,)), Tensor("b", "BYTES", (-1,)), Tensor("j", "BOOL", (1,))]
    decoded = decode_request(head + one + two, len(head), specs, []).inputs
    assert decoded["a"].tolist() == np.array(floats, np.float32).tolist()
    assert decoded["b"].tolist() == texts
    assert decoded["j"].tolist() == [True]


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bf16_rounds_to_the_nearest(values: list[float]) -> None:
    array = np.array(values, np.float32)
    sent = answer("BF16", array, True)
    blob = sent.body[sent.header_length :]
    body = request(entry("BF16", None, [len(values)], parameters={"binary_data_size": len(blob)}))
    back = decode(body + blob, flat("BF16"), len(body))
    assert np.array_equal(np.isnan(back), np.isnan(array))
    known = np.isfinite(array) & (np.abs(array) < 3.3e38) & (np.abs(array) > 1e-37)
    assert (np.abs(back[known] - array[known]) <= np.abs(array[known]) * 2.0**-8).all()
    assert (back[np.isinf(array)] == array[np.isinf(array)]).all()


X = Tensor("x", "INT32", (2,))


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"{", None, "not valid JSON"),
        (b"[" * 100_000, None, "not valid JSON"),
        (b"[]", None, "not a JSON object"),
        (b"{}", None, "inputs: must be a list"),
        (b"{}", 9, "Inference-Header-Content-Length: 9 is more than the body's 2 bytes"),
        (request(), None, r"input 'x' is missing; the model takes x INT32 \[2\]"),
        (request({}), None, r"inputs\[0\]: must be an object with a name"),
        (request({"name": "y"}), None, "input 'y' is not known; the model takes x INT32"),
        (request(entry("FP32", [1, 2])), None, "datatype 'FP32' does not match x INT32"),
        (request(entry("INT32", [1, 2, 3], [3])), None, r"shape \[3\] does not match"),
        (request(entry("INT32", [1, 2], [-2])), None, "is not a list of sizes"),
        (request(entry("INT32", [1, 2], [True])), None, "is not a list of sizes"),
        (request(entry("INT32", [1, 2, 3])), None, "3 elements of data, but shape"),
        (request(entry("INT32", [1, 1.5])), None, "does not hold whole numbers only"),
        (request(entry("INT32", [1, "2"])), None, "does not hold whole numbers only"),
        (request(entry("INT32", [True, False])), None, "does not hold whole numbers only"),
        (request(entry("INT32", [1, None])), None, "does not hold whole numbers only"),
        (request(entry("INT32", [[1], [1, 2]])), None, "does not hold whole numbers only"),
        (request(entry("INT32", [1, 2**31])), None, "2147483648 is out of the range of INT32"),
        (request(entry("INT32", [1, -(2**70)])), None, "is out of the range of INT32"),
        (request(entry("INT32")), None, "data is missing"),
        (request(entry("INT32", [1, 2]), entry("INT32", [1, 2])), None, "given twice"),
        (request(entry("INT32", parameters={"binary_data_size": 8})), None, "no Inference-Header-Content-Length"),
        (
            request(entry("INT32", parameters={"shared_memory_region": "r"})),
            None,
            "shared_memory_region is not supported",
        ),
        (request(entry("INT32", [1, 2]), id=3), None, "id: 3 is not a string"),
        (request(entry("INT32", [1, 2]), outputs=[{"name": "z"}]), None, "output 'z' is not known; the model gives y"),
        (request(entry("INT32", [1, 2]), outputs=[{"name": "y"}] * 2), None, "asked for twice"),
        (request(entry("INT32", [1, 2]), parameters={"binary_data_output": 1}), None, "is not true or false"),
        (request(entry("INT32", [1, 2]), parameters=[]), None, "parameters: must be an object"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(body: bytes, length: int | None, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        decode_request(body, length, [X], [Tensor("y", "INT32", (2,))])


@pytest.mark.parametrize(
    ("tail", "size", "message"),
    [
        (bytes(8), 7, "7 bytes of data, but shape"),
        (bytes(8), 9, "binary_data_size 9 does not fit the 8 bytes that follow"),
        (bytes(8), -1, "does not fit"),
        (bytes(9), 8, "1 bytes of the body belong to no input"),
    ],
)
def test_bad_binary_sizes(tail: bytes, size: int, message: str) -> None:
    head = request(entry("INT32", parameters={"binary_data_size": size}))
    with pytest.raises(BadRequestError, match=message):
        decode_request(head + tail, len(head), [X], [])


@pytest.mark.parametrize("blob", [b"\1\0\0", struct.pack("<I", 9) + b"short", struct.pack("<I", 2**32 - 1)])
def test_bytes_cut_short(blob: bytes) -> None:
    head = request(entry("BYTES", None, [1], parameters={"binary_data_size": len(blob)}))
    with pytest.raises(BadRequestError, match="cut short"):
        decode_request(head + blob, len(head), [flat("BYTES")], [])


def test_raw_request_is_the_only_input() -> None:
    outputs = [Tensor("y", "FP32", (-1,))]
    image = decode_request(bytes(range(12)), 0, [Tensor("x", "UINT8", (-1, 2, 3))], outputs)
    assert image.inputs["x"].shape == (2, 2, 3)
    assert image.outputs == (("y", True),)
    assert decode_request(b"text", 0, [Tensor("x", "BYTES", (-1,))], []).inputs["x"].tolist() == [b"text"]
    with pytest.raises(BadRequestError, match="at most one open dimension"):
        decode_request(b"abc", 0, [Tensor("x", "UINT8", (-1, -1, 3))], [])
    with pytest.raises(BadRequestError, match="13 bytes of data"):
        decode_request(bytes(13), 0, [Tensor("x", "UINT8", (-1, 2, 3))], [])


def test_outputs_asked_for_come_back_in_their_order_and_form() -> None:
    specs = [Tensor("a", "INT64", (-1,)), Tensor("b", "FP32", (-1,))]
    results = {"a": np.array([1, 2]), "b": np.array([0.5])}

    def ask(**more: Any) -> tuple[dict[str, Any], bytes]:
        asked = decode_request(json.dumps({"inputs": [], "id": "seven", **more}).encode(), None, [], specs)
        sent = encode_response(asked, results, specs, model="m", version="3")
        length = len(sent.body) if sent.header_length is None else sent.header_length
        return json.loads(sent.body[:length]), sent.body[length:]

    head, tail = ask()
    assert (head["model_name"], head["model_version"], head["id"], tail) == ("m", "3", "seven", b"")
    assert [(o["name"], o["data"]) for o in head["outputs"]] == [("a", [1, 2]), ("b", [0.5])]

    head, tail = ask(outputs=[{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}])
    assert [o["name"] for o in head["outputs"]] == ["b", "a"]
    assert tail == np.array([0.5], "<f4").tobytes()
    assert head["outputs"][1]["data"] == [1, 2]

    head, tail = ask(parameters={"binary_data_output": True}, outputs=[{"name": "a"}])
    assert tail == np.array([1, 2], "<i8").tobytes()
    head, tail = ask(
        parameters={"binary_data_output": True}, outputs=[{"name": "a", "parameters": {"binary_data": False}}]
    )
    assert tail == b""


def test_parameters_reach_the_model() -> None:
    body = request(entry("INT32", [1, 2]), parameters={"mode": "fast"})
    assert decode_request(body, None, [X], []).inputs.parameters == {"mode": "fast"}


def test_optional_inputs_may_be_left_out() -> None:
    specs = [X, Tensor("y", "FP32", (1,), optional=True)]
    assert set(decode_request(request(entry("INT32", [1, 2])), None, specs, []).inputs) == {"x"}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2)), r"of shape \[2, 2\], declared is x FP32 \[2\]"),
        (np.array(["a", "b"]), "declared is x FP32"),
        (np.array([1 + 2j, 0]), "declared is x FP32"),
    ],
)
def test_a_model_that_breaks_its_declaration(array: Any, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        encode_response(
            InferRequest(None, Inputs(), (("x", False),)),
            {"x": array},
            [Tensor("x", "FP32", (2,))],
            model="m",
            version="1",
        )


def test_a_missing_output_is_the_models_fault() -> None:
    with pytest.raises(OutputError, match="returned no output 'x'"):
        encode_response(InferRequest(None, Inputs(), (("x", False),)), {}, [X], model="m", version="1")


def test_nan_needs_binary() -> None:
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        answer("FP32", np.array([np.nan]), False)
    sent = answer("FP32", np.array([np.nan]), True)
    assert np.isnan(np.frombuffer(sent.body[sent.header_length :], "<f4")).all()


def test_unknown_datatype_in_a_declaration() -> None:
    with pytest.raises(ValueError, match="tensor x: datatype 'FLOAT' is not one of BOOL"):
        Tensor("x", "FLOAT", (1,))

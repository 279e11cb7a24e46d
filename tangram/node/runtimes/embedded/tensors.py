"""The Open Inference Protocol's infer request and response, in JSON and with the binary tensor data extension.

With the extension a body is a JSON object followed by the raw bytes of those tensors that carry a `binary_data_size`
parameter, in the order in which the JSON names them; the header `Inference-Header-Content-Length` gives the length of
the JSON part. Raw tensors are little-endian and row-major; an element of BYTES is its length in four bytes, then the
bytes. A length of 0 is Triton's raw request: the body is the model's only input and nothing else.

What a client did wrong is a BadRequestError that names the tensor, the value and the mend. What the model did wrong
is an `OutputError`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tangram.node.runtimes.embedded.api import BadRequestError, Inputs, Tensor

Array = NDArray[Any]

_NUMPY: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<f4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("object"),
}
_UNSUPPORTED_PARAMETERS: Final = ("shared_memory_region", "classification")


class OutputError(Exception):
    """The model returned something other than it declares."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked request: tensors for the model, and what to answer with."""

    id: str | None
    inputs: Inputs
    outputs: tuple[tuple[str, bool], ...]
    """Name and whether it goes back as binary data, in the order asked for."""


@dataclass(frozen=True, slots=True)
class InferResponse:
    body: bytes
    header_length: int | None
    """Length of the JSON part where binary data follows, else None."""


# --- request -------------------------------------------------------------------------------------------------------


def decode_request(
    body: bytes, header_length: int | None, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> InferRequest:
    """Check a request against the model's tensors; BadRequestError on anything that does not match."""
    if header_length == 0 and body:
        return _decode_raw(body, inputs, outputs)
    if header_length is not None and header_length > len(body):
        raise BadRequestError(
            f"Inference-Header-Content-Length: {header_length} is more than the body's {len(body)} bytes"
        )
    try:
        document = json.loads(body if header_length is None else body[:header_length])
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the request is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequestError('the request is not a JSON object; write {"inputs": [...]}')
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadRequestError(f"id: {identity!r} is not a string")
    parameters = _parameters(document, "parameters")
    tensors = _decode_inputs(document.get("inputs"), body, header_length, inputs)
    return InferRequest(identity, Inputs(tensors, parameters), _wanted(document.get("outputs"), parameters, outputs))


def _decode_inputs(
    entries: object, body: bytes, header_length: int | None, specs: Sequence[Tensor]
) -> dict[str, Array]:
    if not isinstance(entries, list):
        raise BadRequestError("inputs: must be a list of tensors")
    known = {spec.name: spec for spec in specs}
    tensors: dict[str, Array] = {}
    offset = header_length
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise BadRequestError(f"inputs[{index}]: must be an object with a name")
        spec = known.get(name)
        if spec is None:
            raise BadRequestError(f"input {name!r} is not known; the model takes {_listing(specs)}")
        if name in tensors:
            raise BadRequestError(f"input {name!r} is given twice")
        if entry.get("datatype") != spec.datatype:
            raise BadRequestError(f"input {name!r}: datatype {entry.get('datatype')!r} does not match {spec}")
        shape = _shape(entry.get("shape"), spec)
        size = _parameters(entry, f"input {name!r}: parameters").get("binary_data_size")
        if size is None:
            tensors[name] = _from_json(entry.get("data"), shape, spec)
            continue
        if "data" in entry:
            raise BadRequestError(f"input {name!r}: has both data and binary_data_size; give one")
        if offset is None:
            raise BadRequestError(
                f"input {name!r}: has binary_data_size, but the request has no Inference-Header-Content-Length header"
            )
        if isinstance(size, bool) or not isinstance(size, int) or size < 0 or offset + size > len(body):
            raise BadRequestError(
                f"input {name!r}: binary_data_size {size!r} does not fit the {len(body) - offset} bytes that follow"
            )
        tensors[name] = _from_binary(body[offset : offset + size], shape, spec)
        offset += size
    if offset is not None and offset != len(body):
        raise BadRequestError(
            f"{len(body) - offset} bytes of the body belong to no input; give each its binary_data_size"
        )
    for spec in specs:
        if spec.name not in tensors and not spec.optional:
            raise BadRequestError(f"input {spec.name!r} is missing; the model takes {_listing(specs)}")
    return tensors


def _decode_raw(body: bytes, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> InferRequest:
    needed = [spec for spec in inputs if not spec.optional]
    if len(needed) != 1 or needed[0].shape.count(-1) > 1:
        raise BadRequestError(
            "a raw request (Inference-Header-Content-Length: 0) wants a model with one input and at most one open "
            f"dimension; the model takes {_listing(inputs)}"
        )
    spec = needed[0]
    if spec.datatype == "BYTES":
        body = struct.pack("<I", len(body)) + body
        total = 1
    else:
        width = 2 if spec.datatype == "BF16" else _NUMPY[spec.datatype].itemsize
        total = len(body) // width
    fixed = math.prod(n for n in spec.shape if n != -1)
    shape = tuple((total // fixed if fixed else 0) if n == -1 else n for n in spec.shape)
    return InferRequest(
        None, Inputs({spec.name: _from_binary(body, shape, spec)}), tuple((o.name, True) for o in outputs)
    )


def _wanted(entries: object, parameters: Mapping[str, Any], specs: Sequence[Tensor]) -> tuple[tuple[str, bool], ...]:
    default = _flag(parameters, "binary_data_output", False)
    if entries is None or entries == []:
        return tuple((spec.name, default) for spec in specs)
    if not isinstance(entries, list):
        raise BadRequestError("outputs: must be a list")
    wanted: dict[str, bool] = {}
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise BadRequestError(f"outputs[{index}]: must be an object with a name")
        if name not in {spec.name for spec in specs}:
            raise BadRequestError(f"output {name!r} is not known; the model gives {_listing(specs)}")
        if name in wanted:
            raise BadRequestError(f"output {name!r} is asked for twice")
        wanted[name] = _flag(_parameters(entry, f"output {name!r}: parameters"), "binary_data", default)
    return tuple(wanted.items())


def _parameters(entry: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequestError(f"{what}: must be an object")
    for name in _UNSUPPORTED_PARAMETERS:
        if name in parameters:
            raise BadRequestError(f"{what}: {name} is not supported by this server; leave it out")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"parameters: {name}: {value!r} is not true or false")
    return value


def _shape(value: object, spec: Tensor) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise BadRequestError(f"input {spec.name!r}: shape {value!r} is not a list of sizes")
    if len(value) != len(spec.shape) or any(
        want not in (-1, have) for want, have in zip(spec.shape, value, strict=True)
    ):
        raise BadRequestError(f"input {spec.name!r}: shape {value} does not match {spec}")
    return tuple(value)


def _listing(specs: Sequence[Tensor]) -> str:
    return ", ".join(map(str, specs)) or "no tensors"


def _from_binary(raw: bytes, shape: tuple[int, ...], spec: Tensor) -> Array:
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        array = _split_bytes(raw, count, spec)
    else:
        dtype = np.dtype("<u2") if spec.datatype == "BF16" else _NUMPY[spec.datatype]
        if len(raw) != count * dtype.itemsize:
            raise BadRequestError(
                f"input {spec.name!r}: {len(raw)} bytes of data, but shape {list(shape)} of {spec.datatype} takes "
                f"{count * dtype.itemsize}"
            )
        array = np.frombuffer(raw, dtype)
        if spec.datatype == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        elif spec.datatype == "BOOL":
            # A byte other than 0 and 1 is no valid bool in numpy's memory.
            array = np.frombuffer(raw, np.uint8) != 0
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _split_bytes(raw: bytes, count: int, spec: Tensor) -> Array:
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        end = offset + 4
        if end <= len(raw):
            end += struct.unpack_from("<I", raw, offset)[0]
        if end > len(raw):
            raise BadRequestError(
                f"input {spec.name!r}: element {len(elements)} is cut short; each is its length, then bytes"
            )
        elements.append(raw[offset + 4 : end])
        offset = end
    if len(elements) != count:
        raise BadRequestError(f"input {spec.name!r}: {len(elements)} elements of data, but the shape has {count}")
    array = np.empty(count, object)
    array[:] = elements
    return array


def _from_json(data: object, shape: tuple[int, ...], spec: Tensor) -> Array:
    if not isinstance(data, list):
        raise BadRequestError(f"input {spec.name!r}: data is missing; give a list of values, or binary_data_size")
    array = _texts(data, spec) if spec.datatype == "BYTES" else _numbers(data, spec)
    if array.size != math.prod(shape):
        raise BadRequestError(
            f"input {spec.name!r}: {array.size} elements of data, but shape {list(shape)} has {math.prod(shape)}"
        )
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _texts(data: list[Any], spec: Tensor) -> Array:
    flat: list[bytes] = []
    stack = [iter(data)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            if not isinstance(item, str):
                raise BadRequestError(f"input {spec.name!r}: {item!r} is not a string; BYTES in JSON are strings")
            flat.append(item.encode("utf-8", "surrogatepass"))
        else:
            stack.pop()
    array = np.empty(len(flat), object)
    array[:] = flat
    return array


def _numbers(data: list[Any], spec: Tensor) -> Array:
    target = _NUMPY[spec.datatype]
    wanted = {"b": "true or false", "f": "numbers"}.get(target.kind, "whole numbers")
    mismatch = (
        f"input {spec.name!r}: data does not hold {wanted} only (in rows of equal length), as {spec.datatype} wants"
    )
    natural: Array
    try:
        natural = np.array(data) if data else np.empty(0, target)
    except ValueError:
        raise BadRequestError(mismatch) from None
    if target.kind in "iu" and natural.dtype.kind in "fO" and natural.size:
        # Whole numbers beyond int64, or next to them a fraction: numpy has no common integer type to tell by itself.
        natural = np.array(data, object)
        if any(type(x) is not int for x in natural.flat):
            raise BadRequestError(mismatch)
    elif natural.dtype.kind not in {"b": "b", "f": "iuf"}.get(target.kind, "iu"):
        raise BadRequestError(mismatch)
    if target.kind in "iu" and natural.size:
        bounds = np.iinfo(target)
        low, high = natural.min(), natural.max()
        if low < bounds.min or high > bounds.max:
            worst = low if low < bounds.min else high
            raise BadRequestError(f"input {spec.name!r}: {worst} is out of the range of {spec.datatype}")
    with np.errstate(over="ignore"):
        array = natural.astype(target)
    if target.kind == "f" and natural.dtype.kind == "f" and not np.array_equal(np.isinf(array), np.isinf(natural)):
        raise BadRequestError(f"input {spec.name!r}: a value is out of the range of {spec.datatype}")
    return array


# --- response ------------------------------------------------------------------------------------------------------


def encode_response(
    request: InferRequest, results: Mapping[str, Array], specs: Sequence[Tensor], *, model: str, version: str
) -> InferResponse:
    """The body of an answer with the outputs asked for; OutputError where the model broke its declaration."""
    declared = {spec.name: spec for spec in specs}
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in request.outputs:
        if name not in results:
            raise OutputError(f"predict() returned no output {name!r}")
        spec = declared[name]
        array = _conform(np.asarray(results[name]), spec)
        entry: dict[str, Any] = {"name": name, "datatype": spec.datatype, "shape": list(array.shape)}
        if binary:
            blobs.append(_to_binary(array, spec))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = _to_json(array, spec)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    head = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    return InferResponse(b"".join((head, *blobs)), len(head) if blobs else None)


def _conform(array: Array, spec: Tensor) -> Array:
    if len(array.shape) != len(spec.shape) or any(
        want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
    ):
        raise OutputError(f"predict() returned {spec.name!r} of shape {list(array.shape)}, declared is {spec}")
    if spec.datatype == "BYTES":
        if array.dtype.kind not in "OSU":
            raise OutputError(f"predict() returned {spec.name!r} as {array.dtype}, declared is {spec}")
        return array
    target = _NUMPY[spec.datatype]
    if not np.can_cast(array.dtype, target, "same_kind"):
        raise OutputError(f"predict() returned {spec.name!r} as {array.dtype}, declared is {spec}")
    return array.astype(target, order="C", copy=False)


def _elements(array: Array) -> list[bytes]:
    return [x.encode() if isinstance(x, str) else bytes(x) for x in array.ravel().tolist()]


def _to_binary(array: Array, spec: Tensor) -> bytes:
    if spec.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(x)) + x for x in _elements(array))
    if spec.datatype == "BF16":
        bits = array.view("<u4").astype(np.uint64)
        # Round to nearest, ties to even; a NaN keeps a bit set below, so that it stays one.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()
    return array.tobytes()


def _to_json(array: Array, spec: Tensor) -> list[Any]:
    if spec.datatype == "BYTES":
        try:
            return [x.decode() for x in _elements(array)]
        except UnicodeDecodeError:
            raise BadRequestError(
                f"output {spec.name!r} is not UTF-8 text, which JSON cannot carry; ask for it with binary_data"
            ) from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequestError(
            f"output {spec.name!r} holds NaN or infinity, which JSON cannot carry; ask for it with binary_data"
        )
    values: list[Any] = array.ravel().tolist()
    return values

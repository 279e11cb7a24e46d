"""What a model file is written against. Importing this module does not import numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The protocol's data types. A model sees BF16 as float32 and BYTES as an object array of bytes.
DATATYPES: Final = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
)  # fmt: skip


class UnsupportedError(Exception):
    """The model does not do what was asked of it; the client gets 404 with this text."""


class BadRequestError(ValueError):
    """What the client sent is wrong; the text names the field, the value and the mend."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Declares one input or output; a dimension of -1 takes any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    """An input that a request may leave out."""

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            raise ValueError(f"tensor {self.name}: datatype {self.datatype!r} is not one of {', '.join(DATATYPES)}")

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} [{', '.join(map(str, self.shape))}]"


class Inputs(dict[str, "NDArray[Any]"]):
    """The input tensors of one request by name, and the request's parameters beside them. Arrays are read-only."""

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]] | None = None, parameters: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(tensors or {})
        self.parameters: Mapping[str, Any] = parameters or {}


class Model:
    """A model that the embedded server serves; a subclass overrides what it can do.

    All methods run in one thread, one call at a time. A ValueError is the client's fault (400 with its text); any other
    exception is the model's (500, details in the log).
    """

    inputs: Sequence[Tensor] = ()
    outputs: Sequence[Tensor] = ()
    version: str = "1"
    default_max_tokens: int = 256
    """Length of a chat answer where the request gives none."""

    def load(self) -> None:
        """Get ready: read weights, warm up. Requests are answered when it has returned."""

    def predict(self, inputs: Inputs) -> Mapping[str, NDArray[Any]]:
        """Open Inference Protocol: output tensors by name, for inputs that match the declared tensors."""
        raise UnsupportedError("this model takes no tensors; it does not override predict()")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`/v1/embeddings`: one row of shape (dimensions,) for each text."""
        raise UnsupportedError("this model makes no embeddings; it does not override embed()")

    def generate(
        self, prompt: str, max_tokens: int, temperature: float, seed: int | None, stop: Sequence[str]
    ) -> Iterator[str]:
        """`/v1/completions` and `/v1/chat/completions`: the continuation, a token at a time.

        The server ends it after max_tokens and cuts it before a stop string, so a model may leave both alone.
        """
        raise UnsupportedError("this model generates no text; it does not override generate()")

    def chat_prompt(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt for a chat, given as (role, text) pairs, oldest first."""
        return "".join(f"{role}: {text}\n" for role, text in messages) + "assistant:"

    def count_tokens(self, text: str) -> int:
        """Length of a prompt for `usage`; words unless a model counts otherwise."""
        return len(text.split())

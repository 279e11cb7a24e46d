"""A text model: characters drawn one after the other by interpolated n-grams, counted by `train.py`.

The probability of a character is Witten and Bell's interpolation (1991) of what followed the last n-1 characters,
the last n-2, and so on down to the uniform distribution: a context seen c times with t different successors weighs
c / (c + t), its shorter self the rest.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tangram.node.runtimes.embedded import Inputs, Model, Tensor

ORDER = 5
_MAX_TOKENS = 4096

Table = tuple[np.ndarray, np.ndarray]


def count(text: str, order: int) -> tuple[str, list[Table]]:
    """The alphabet, and for n = 1 .. order the n-grams (as numbers in base len(alphabet), sorted) and their counts."""
    alphabet = "".join(sorted(set(text)))
    codes = np.array([alphabet.index(c) for c in text], np.uint64)
    grams = np.zeros(len(codes), np.uint64)
    tables = []
    for n in range(1, order + 1):
        grams = grams[: len(codes) - n + 1] * np.uint64(len(alphabet)) + codes[n - 1 :]
        found, counts = np.unique(grams, return_counts=True)
        tables.append((found, counts.astype(np.uint16)))
    return alphabet, tables


class Interpolated:
    """Successor probabilities from n-gram counts."""

    def __init__(self, alphabet: str, tables: Sequence[Table]) -> None:
        self.alphabet = alphabet
        self._code = {c: i for i, c in enumerate(alphabet)}
        self._tables = [(grams, counts.astype(np.float64)) for grams, counts in tables]

    def encode(self, text: str) -> list[int]:
        """Characters as numbers; those the model has never seen are left out."""
        return [self._code[c] for c in text if c in self._code]

    def successors(self, context: Sequence[int]) -> np.ndarray:
        """Probability of each character of the alphabet after the context."""
        size = len(self.alphabet)
        p = np.full(size, 1 / size)
        number = 0
        for n, (grams, counts) in enumerate(self._tables):
            if n > len(context):
                break
            if n:
                number += context[-n] * size ** (n - 1)
            low, high = np.searchsorted(grams, np.array([number * size, (number + 1) * size], np.uint64))
            if low == high:
                break
            seen = counts[low:high]
            mass = np.zeros(size)
            mass[(grams[low:high] - np.uint64(number * size)).astype(np.intp)] = seen
            p = (mass + len(seen) * p) / (seen.sum() + len(seen))
        return p

    def log2_probabilities(self, text: str) -> np.ndarray:
        """log2 of the probability of each known character of a text, given those before it."""
        codes = self.encode(text)
        order = len(self._tables)
        return np.array(
            [np.log2(self.successors(codes[max(0, i - order + 1) : i])[code]) for i, code in enumerate(codes)]
        )


class NGram(Model):
    """Continues a text (OpenAI routes), or says how likely one is (Open Inference Protocol)."""

    inputs = (Tensor("text", "BYTES", (-1,)),)
    outputs = (Tensor("bits_per_character", "FP32", (-1,)),)
    default_max_tokens = 200

    def load(self) -> None:
        data = np.load(Path(__file__).with_name("counts.npz"))
        self._model = Interpolated(str(data["alphabet"]), [(data[f"g{n}"], data[f"c{n}"]) for n in range(ORDER)])

    def generate(
        self, prompt: str, max_tokens: int, temperature: float, seed: int | None, stop: Sequence[str]
    ) -> Iterator[str]:
        if max_tokens > _MAX_TOKENS:
            raise ValueError(f"max_tokens: {max_tokens} is more than this model's {_MAX_TOKENS}")
        rng = np.random.default_rng(None if seed is None else seed % 2**63)
        codes = self._model.encode(prompt)[1 - ORDER :]
        for _ in range(max_tokens):
            p = self._model.successors(codes)
            if temperature == 0:
                code = int(p.argmax())
            else:
                heated = p ** (1 / max(temperature, 0.01))
                code = int(rng.choice(len(p), p=heated / heated.sum()))
            codes = [*codes, code][1 - ORDER :]
            yield self._model.alphabet[code]

    def chat_prompt(self, messages: Sequence[tuple[str, str]]) -> str:
        """A model that only continues text continues what the user said last."""
        return next((text for role, text in reversed(messages) if role == "user"), "")

    def count_tokens(self, text: str) -> int:
        return len(text)

    def predict(self, inputs: Inputs) -> dict[str, np.ndarray]:
        bits = []
        for raw in inputs["text"]:
            known = self._model.log2_probabilities(raw.decode())
            if not len(known):
                raise ValueError(f"input 'text': {raw!r} holds no character that the model knows")
            bits.append(-known.mean())
        return {"bits_per_character": np.array(bits, np.float32)}

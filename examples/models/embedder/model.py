"""Text in, a vector of length 1 out, and the nearest sentences of a small corpus. Weights are learnt by `train.py`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from text import BUCKETS, vector

from tangram.node.runtimes.embedded import Inputs, Model, Tensor

LATENT = 64
_PROJECTED = 192
_MAX_NEAREST = 10


def _signs() -> np.ndarray:
    """A fixed random projection with entries of +1 and -1 (Achlioptas, 2003): shape (BUCKETS, _PROJECTED)."""
    state = np.arange(1, BUCKETS * _PROJECTED + 1, dtype=np.uint64)
    # SplitMix64, so that the same vectors come out on any version of numpy.
    state = state * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(state >> np.uint64(63), 1, -1).astype(np.int8).reshape(BUCKETS, _PROJECTED)


_PROJECTION = _signs()


def _unit(row: np.ndarray) -> np.ndarray:
    return row / max(float(np.linalg.norm(row)), 1e-12)


def embed_all(texts: Sequence[str], idf: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Shape (texts, LATENT + _PROJECTED): what the text is about, beside what it says word for word.

    A text without a known feature gives zeros.
    """
    rows = np.zeros((len(texts), LATENT + _PROJECTED), np.float32)
    for row, text in zip(rows, texts, strict=True):
        hashed = vector(text)
        present = np.flatnonzero(hashed)
        weighted = hashed[present] * idf[present]
        row[:LATENT] = _unit(weighted @ directions[present].astype(np.float32))
        row[LATENT:] = _unit(weighted @ _PROJECTION[present].astype(np.float32))
        row[:] = _unit(row)
    return rows


class Embedder(Model):
    """`nearest` holds the sentences of the corpus closest to each text, best first; parameter `top_k` says how many."""

    inputs = (Tensor("text", "BYTES", (-1,)),)
    outputs = (
        Tensor("embedding", "FP32", (-1, LATENT + _PROJECTED)),
        Tensor("nearest", "BYTES", (-1, -1)),
        Tensor("similarity", "FP32", (-1, -1)),
    )

    def load(self) -> None:
        here = Path(__file__).parent
        weights = np.load(here / "weights.npz")
        self._weights = weights["idf"], weights["directions"]
        lines = (here / "corpus.tsv").read_text(encoding="utf-8").splitlines()
        self._sentences = np.array([line.partition("\t")[2].encode() for line in lines], object)
        self._corpus = self.embed([sentence.decode() for sentence in self._sentences])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return embed_all(texts, *self._weights)

    def predict(self, inputs: Inputs) -> dict[str, np.ndarray]:
        k = inputs.parameters.get("top_k", 3)
        if type(k) is not int or not 1 <= k <= _MAX_NEAREST:
            raise ValueError(f"parameter top_k: {k!r} is not a whole number from 1 to {_MAX_NEAREST}")
        texts = [raw.decode() for raw in inputs["text"]]
        if not texts:
            raise ValueError("input 'text': is empty; give at least one text")
        embedding = self.embed(texts)
        similarity = embedding @ self._corpus.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return {
            "embedding": embedding,
            "nearest": self._sentences[order],
            "similarity": np.take_along_axis(similarity, order, axis=1),
        }

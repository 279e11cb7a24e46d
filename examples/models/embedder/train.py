"""Learns the embedder's weights from `corpus.tsv` and writes `weights.npz` beside this file.

Weights are inverse document frequencies of the hashed features, and the leading singular directions (latent semantic
analysis, Deerwester et al., 1990) of the corpus and of `related.txt`, whose lines are words that belong together. What
is printed is measured on `queries.tsv`, which is not trained on, and on the corpus with each sentence left out.
"""

from pathlib import Path

import numpy as np
from model import LATENT, embed_all
from text import vector

HERE = Path(__file__).resolve().parent


def read(name: str) -> tuple[list[str], list[str]]:
    rows = [line.split("\t") for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    return [topic for topic, _ in rows], [text for _, text in rows]


def learn(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Inverse document frequencies of shape (BUCKETS,), and directions of shape (BUCKETS, LATENT) in 127ths."""
    related = (HERE / "related.txt").read_text(encoding="utf-8").splitlines()
    counts = np.stack([vector(text) for text in [*texts, *related]])
    idf = np.log((1 + len(counts)) / (1 + (counts != 0).sum(0))).astype(np.float16)
    weighted = counts * idf
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    _, _, directions = np.linalg.svd(weighted.astype(np.float64), full_matrices=False)
    directions = directions[:LATENT]
    # The sign of a singular vector is arbitrary; the largest entry is made positive.
    directions *= np.sign(directions[np.arange(LATENT), np.abs(directions).argmax(1)])[:, None]
    directions /= np.abs(directions).max(axis=1, keepdims=True)
    return idf, np.rint(127 * directions.T).astype(np.int8)


def main() -> None:
    topics, texts = read("corpus.tsv")
    idf, directions = learn(texts)
    np.savez_compressed(HERE / "weights.npz", idf=idf, directions=directions)

    corpus = embed_all(texts, idf, directions)
    wanted, queries = read("queries.tsv")
    best = (embed_all(queries, idf, directions) @ corpus.T).argmax(1)
    right = sum(topics[i] == topic for i, topic in zip(best, wanted, strict=True))
    print(f"corpus: {len(texts)} sentences, {len(set(topics))} topics")
    print(f"queries whose nearest sentence is of their topic: {right} of {len(queries)}")

    right = 0
    for out in range(len(texts)):
        rest = [i for i in range(len(texts)) if i != out]
        weights = learn([texts[i] for i in rest])
        vectors = embed_all([texts[out], *(texts[i] for i in rest)], *weights)
        right += topics[rest[int((vectors[1:] @ vectors[0]).argmax())]] == topics[out]
    print(f"corpus sentences whose nearest other one is of their topic: {right} of {len(texts)}")


if __name__ == "__main__":
    main()

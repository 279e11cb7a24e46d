"""Real input for the example models. Standard library only: Locust has an environment of its own, without numpy."""

from __future__ import annotations

import ast
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

EXAMPLES: Final = Path(__file__).resolve().parent.parent / "examples"

SENTENCES: Final = (
    "The packer leaves no gap that nobody can use.",
    "A replica that starts is capacity to come.",
    "Where can I read how the gateway waits for a model?",
    "Seven pieces fit back into one square.",
    "Rain is expected in the afternoon, with some wind from the west.",
    "The train to the coast leaves at half past six.",
    "How do I bake bread without yeast?",
    "An even load is easier to carry than a heavy one.",
)
PROMPTS: Final = ("The ", "It was ", "In the morning ", "She said ", "There are ")


def digits() -> list[list[list[int]]]:
    """8x8 images of handwritten digits (pixels 0 to 16) that the digits model was not trained on."""
    raw, shape = _npy(EXAMPLES / "models/digits/heldout.npz", "images")
    count, height, width = shape
    rows = [list(raw[i * width : (i + 1) * width]) for i in range(count * height)]
    return [rows[i * height : (i + 1) * height] for i in range(count)]


def photograph(rng: random.Random, height: int = 32, width: int = 32) -> list[list[list[int]]]:
    """A picture of soft light with a hard edge and grain, RGB 0 to 255: something for a filter to work on."""
    edge = rng.randrange(width // 4, 3 * width // 4)
    light = [rng.uniform(0.3, 1.0) for _ in range(3)]

    def pixel(y: int, x: int, channel: int) -> int:
        shade = (y / height if x < edge else 1 - x / width) * light[channel] * 255 + rng.uniform(-12, 12)
        return max(0, min(255, round(shade)))

    return [[[pixel(y, x, c) for c in range(3)] for x in range(width)] for y in range(height)]


def _npy(path: Path, name: str) -> tuple[bytes, Sequence[int]]:
    """Bytes and shape of an array of bytes in an npz archive (format: numpy.lib.format, version 1)."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read(f"{name}.npy")
    length = int.from_bytes(data[8:10], "little")
    head = ast.literal_eval(data[10 : 10 + length].decode("latin-1"))
    if data[:7] != b"\x93NUMPY\x01" or head["descr"] != "|u1" or head["fortran_order"]:
        raise ValueError(f"{path}: array {name!r} is not of plain bytes; write it with dtype uint8")
    return data[10 + length :], head["shape"]

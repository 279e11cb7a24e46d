"""Counts the character n-grams of `text.txt` and writes them to `counts.npz` beside this file.

The text follows the first chapter of Lewis Carroll's "Alice's Adventures in Wonderland" (1865, public domain). It was
typed from memory, so its wording may differ from an edition's. The last tenth is held out; what the script prints is
measured on it.
"""

from pathlib import Path

import numpy as np
from model import ORDER, Interpolated, count

HERE = Path(__file__).resolve().parent


def main() -> None:
    text = (HERE / "text.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    alphabet, tables = count(text[:cut], ORDER)
    arrays = {f"{kind}{n}": part for n, table in enumerate(tables) for kind, part in zip("gc", table, strict=True)}
    np.savez_compressed(HERE / "counts.npz", alphabet=np.array(alphabet), **arrays)
    print(f"training characters: {cut}, held out: {len(text) - cut}, alphabet: {len(alphabet)}")
    print(f"uniform: {np.log2(len(alphabet)):.3f} bits a character")
    for order in range(1, ORDER + 1):
        bits = -np.mean(Interpolated(alphabet, tables[:order]).log2_probabilities(text[cut:]))
        print(f"{order}-grams: {bits:.3f} bits a character on the held-out text")


if __name__ == "__main__":
    main()

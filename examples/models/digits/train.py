"""Trains the digits classifier and writes `weights.npz` and `heldout.npz` beside this file.

Wants scikit-learn (dependency group `train`); serving wants numpy alone. The data are scikit-learn's bundled digits:
1797 images of 8x8 pixels from 0 to 16, written by 43 people (UCI, Optical Recognition of Handwritten Digits).
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
HELD_OUT = 360


def half_pixel_shifts(images: np.ndarray) -> np.ndarray:
    """The images and their shifts by half a pixel up, down, left and right (mean of the image and its neighbour)."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    moved = [padded[:, 1 + dy : 9 + dy, 1 + dx : 9 + dx] for dy, dx in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    return np.concatenate([(images + other) / 2 for other in moved])


def main() -> None:
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    train_x, held_x, train_y, held_y = train_test_split(
        images, digits.target, test_size=HELD_OUT, random_state=7, stratify=digits.target
    )
    x = half_pixel_shifts(train_x)
    classifier = MLPClassifier((96, 48), alpha=1e-3, max_iter=60, early_stopping=False, random_state=0, tol=0.0)
    classifier.n_iter_no_change = 60
    classifier.fit(x.reshape(len(x), 64), np.tile(train_y, 5))

    layers = {}
    for index, (weights, bias) in enumerate(zip(classifier.coefs_, classifier.intercepts_, strict=True)):
        layers[f"w{index}"] = weights.astype(np.float32)
        layers[f"b{index}"] = bias.astype(np.float32)
    np.savez_compressed(HERE / "weights.npz", **layers)
    np.savez_compressed(HERE / "heldout.npz", images=(held_x * 16).astype(np.uint8), labels=held_y.astype(np.uint8))
    print(f"training images: {len(train_x)}, with shifts {len(x)}; held out: {len(held_x)}")
    print(f"training accuracy: {classifier.score(train_x.reshape(-1, 64), train_y):.4f}")
    print(f"held-out accuracy: {classifier.score(held_x.reshape(-1, 64), held_y):.4f}")


if __name__ == "__main__":
    main()

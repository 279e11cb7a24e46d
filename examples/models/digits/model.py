"""Handwritten digits: 8x8 images in, labels and probabilities out. A small neural network, trained by `train.py`."""

from pathlib import Path

import numpy as np

from tangram.node.runtimes.embedded import Inputs, Model, Tensor


class Digits(Model):
    """Pixels are 0 (paper) to 16 (ink), as in scikit-learn's digits."""

    inputs = (Tensor("image", "FP32", (-1, 8, 8)),)
    outputs = (Tensor("label", "INT64", (-1,)), Tensor("probabilities", "FP32", (-1, 10)))

    def load(self) -> None:
        weights = np.load(Path(__file__).with_name("weights.npz"))
        self._layers = [(weights[f"w{i}"], weights[f"b{i}"]) for i in range(3)]

    def predict(self, inputs: Inputs) -> dict[str, np.ndarray]:
        images = inputs["image"]
        if not np.isfinite(images).all() or images.min(initial=0) < 0 or images.max(initial=0) > 16:
            raise ValueError("input 'image': pixels must lie between 0 (paper) and 16 (ink)")
        x = images.reshape(len(images), 64) / 16
        for weights, bias in self._layers[:-1]:
            x = np.maximum(x @ weights + bias, 0)
        weights, bias = self._layers[-1]
        scores = x @ weights + bias
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        return {"label": probabilities.argmax(axis=1), "probabilities": probabilities}

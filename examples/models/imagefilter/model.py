"""Image filters on RGB images, chosen by the request parameter `filter`: gaussian, sharpen, edges or greyscale."""

import numpy as np

from tangram.node.runtimes.embedded import Inputs, Model, Tensor

_MAX_SIGMA = 20.0
#: Luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian of standard deviation sigma in pixels, cut at three sigma; edges are repeated outwards."""
    radius = max(1, round(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1, dtype=np.float32) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image, pad, mode="edge")
        length = image.shape[axis]
        image = sum(tap * padded.take(range(i, i + length), axis) for i, tap in enumerate(taps))
    return image


def sharpen(image: np.ndarray, sigma: float) -> np.ndarray:
    """Unsharp mask: what a blur takes away is added once more."""
    return 2 * image - gaussian(image, sigma)


def greyscale(image: np.ndarray) -> np.ndarray:
    """Luma, the same in all three channels."""
    return np.repeat((image @ _LUMA)[..., None], 3, axis=2)


def edges(image: np.ndarray) -> np.ndarray:
    """Sobel gradient magnitude of the luma, scaled so that a step from black to white is white."""
    p = np.pad(image @ _LUMA, 1, mode="edge")
    dx = (p[:-2, 2:] + 2 * p[1:-1, 2:] + p[2:, 2:]) - (p[:-2, :-2] + 2 * p[1:-1, :-2] + p[2:, :-2])
    dy = (p[2:, :-2] + 2 * p[2:, 1:-1] + p[2:, 2:]) - (p[:-2, :-2] + 2 * p[:-2, 1:-1] + p[:-2, 2:])
    return np.repeat((np.hypot(dx, dy) / 4)[..., None], 3, axis=2)


class ImageFilter(Model):
    """Parameters: `filter` (gaussian where absent), and for gaussian and sharpen `sigma` in pixels (1.5)."""

    inputs = (Tensor("image", "UINT8", (-1, -1, 3)),)
    outputs = (Tensor("image", "UINT8", (-1, -1, 3)),)

    def predict(self, inputs: Inputs) -> dict[str, np.ndarray]:
        chosen = inputs.parameters.get("filter", "gaussian")
        sigma = inputs.parameters.get("sigma", 1.5)
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma <= _MAX_SIGMA:
            raise ValueError(f"parameter sigma: {sigma!r} is not a number of pixels above 0 and up to {_MAX_SIGMA:g}")
        image = inputs["image"].astype(np.float32)
        if not image.size:
            raise ValueError(f"input 'image': shape {list(image.shape)} holds no pixel")
        match chosen:
            case "gaussian":
                result = gaussian(image, sigma)
            case "sharpen":
                result = sharpen(image, sigma)
            case "edges":
                result = edges(image)
            case "greyscale":
                result = greyscale(image)
            case _:
                raise ValueError(f"parameter filter: {chosen!r} is not one of gaussian, sharpen, edges, greyscale")
        return {"image": np.clip(np.rint(result), 0, 255).astype(np.uint8)}

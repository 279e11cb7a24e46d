from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from loadtests import samples


def test_digits_are_the_images_that_were_held_out() -> None:
    with np.load(samples.EXAMPLES / "models/digits/heldout.npz") as archive:
        assert samples.digits() == archive["images"].tolist()


def test_an_array_of_another_type_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.float32))
    with pytest.raises(ValueError, match="write it with dtype uint8"):
        samples._npy(tmp_path / "a.npz", "images")


def test_a_photograph_has_bytes_of_three_channels() -> None:
    picture = np.array(samples.photograph(random.Random(1)))
    assert picture.shape == (32, 32, 3)
    assert 0 <= picture.min() < picture.max() <= 255

"""Opportunity prices of a mix on a fleet: the duals of the linear programme in `bounds`, made robust by blending.

A dual is what one more slot for the shape would be worth, here in percent of a device. Duals of a degenerate programme
are zero for whatever is not short at the optimum, which would let a placer waste it; a share of the price is therefore
proportional to what the shape asks (percent of devices, and CPU cores as if each were a percent).

Without the solver (the extra `solver` installs it) prices are what the shapes ask alone: the policy then leans on its
other terms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from packer.bounds import SolverMissing, zero_refusal
from packer.engine import Rack
from packer.mix import Mix

#: Devices up to which the programme is not solved: its bound is far from what whole slices can do there, moves mend
#: what goes wrong, and the solver would be most of the memory of whoever places.
_EXACT_ABOVE: Final = 16


def opportunity_prices(racks: Sequence[Rack], mix: Mix, blend: float) -> NDArray[Any]:
    """float32[T], in the order of the mix: percent of a device that one slot for each shape is worth."""
    return _prices(frozenset(Counter(racks).items()), mix, blend)


@lru_cache(maxsize=32)
def _prices(classes: frozenset[tuple[Rack, int]], mix: Mix, blend: float) -> NDArray[Any]:
    weights = np.array(mix.weights) / sum(mix.weights)
    asked = np.array([s.compute * s.devices + s.cpu_milli / 1000 for s in mix.shapes], np.float64)
    mean = float(sum(w * s.compute * s.devices for s, w in zip(mix.shapes, weights, strict=True))) or 1.0
    plain = asked * (mean / float(weights @ asked or 1.0))
    if sum(len(rack.bays) * count for rack, count in classes) <= _EXACT_ABOVE:
        return plain.astype(np.float32)
    try:
        duals = zero_refusal(Counter(dict(classes)), mix).prices
    except SolverMissing:
        return plain.astype(np.float32)
    exact = np.array([duals.get(s, 0.0) for s in mix.shapes]) * mean
    plain *= float(weights @ exact) / float(weights @ plain or 1.0)
    return np.asarray((1 - blend) * exact + blend * plain, np.float32)

"""Time slicing, the GPU driver's default: processes take turns, with equal shares among those that have work.

Neither memory nor compute is held by the driver; what is given here is the right device, and the packer's ledger is
kept by trust and measurement.
"""

from __future__ import annotations

from tangram.node.mechanisms.slices import GivenSlice, SliceSettings


def settings(given: GivenSlice) -> SliceSettings:
    """Show the process these GPUs alone, numbered in this order; the compute guides placement and is not held."""
    return SliceSettings(
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(d.id for d in given.devices)}
    )

"""Time slicing, the GPU driver's default: processes take turns, with equal shares among those that have work.

Neither memory nor compute is held by the driver; what is given here is the right device, and the packer's ledger is
kept by trust and measurement.
"""

from __future__ import annotations

from collections.abc import Sequence

from packer.inventory import Device
from tangram.node.mechanisms.slices import SliceSettings


def settings(devices: Sequence[Device], compute: int) -> SliceSettings:
    """Show the process these GPUs alone, numbered in this order; `compute` guides placement and is not held."""
    return SliceSettings({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(d.id for d in devices)})

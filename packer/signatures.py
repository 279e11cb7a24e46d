"""What racks and Instances are but for their names, as numbers: by these ties are settled."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from packer.engine import Rack

#: Signatures are integers of so many bits.
MASK: Final = (1 << 62) - 1


def canonical(rack: Rack) -> str:
    """A text that two racks share if and only if they are alike, whatever the order of their devices."""
    bays = [
        (b.model, b.memory_mib, b.compute, b.max_clients, sorted(b.labels), sorted(b.mechanisms)) for b in rack.bays
    ]
    return repr((rack.cpu_milli, rack.host_memory_mib, sorted(bays), *([rack.links] if rack.links else [])))


def stable(text: str) -> int:
    """A number for a text, the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") & MASK


def mix64(key: int) -> int:
    """A well-spread hash of an integer (the finalizer of splitmix64)."""
    x = (key + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) & MASK

"""How the GPUs of a machine are linked: NVLinks between each pair, and how far apart they are over PCIe, as NVML tells.

A GPU has up to some dozen NVLinks, each of which ends at another GPU (told by its PCI address) or at an NVSwitch, which
joins every GPU that has links to a switch: two such GPUs reach each other by as many links as the one with fewer has.
A pair without NVLinks talks over PCIe and is left out. Of the way over PCIe NVML knows the level of the common
ancestor: a switch, several, the host bridge, the NUMA node, or the whole system. What a driver does not tell counts as
no link, or as a distance that is not known; it never fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from packer.inventory import Distance

_LAST_LINK = 36


def nvlinks(nvml: Any, handles: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By uuid of each GPU: how many active NVLinks lead to each other GPU. `handles` are NVML's, by uuid."""
    addresses: dict[str, str] = {}
    for uuid, handle in handles.items():
        try:
            addresses[_address(nvml.nvmlDeviceGetPciInfo(handle))] = uuid
        except nvml.NVMLError:
            continue
    direct: dict[str, Counter[str]] = {}
    switched: dict[str, int] = {}
    for uuid, handle in handles.items():
        direct[uuid], switched[uuid] = _ends(nvml, handle, addresses)
    found: dict[str, dict[str, int]] = {}
    for a in handles:
        counts = {b: direct[a][b] + min(switched[a], switched[b]) for b in handles if b != a}
        found[a] = {b: count for b, count in counts.items() if count}
    return found


def distances(nvml: Any, handles: Mapping[str, Any]) -> dict[str, dict[str, Distance]]:
    """By uuid of each GPU: how far each other GPU is over PCIe, where NVML tells."""
    found: dict[str, dict[str, Distance]] = {uuid: {} for uuid in handles}
    for a, b in combinations(handles, 2):
        try:
            far = Distance(nvml.nvmlDeviceGetTopologyCommonAncestor(handles[a], handles[b]))
        except (nvml.NVMLError, ValueError):
            continue
        found[a][b] = found[b][a] = far
    return found


def _ends(nvml: Any, handle: Any, addresses: Mapping[str, str]) -> tuple[Counter[str], int]:
    """(links to each GPU by its uuid, links to switches)."""
    direct: Counter[str] = Counter()
    switched = 0
    for link in range(getattr(nvml, "NVML_NVLINK_MAX_LINKS", _LAST_LINK)):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, link) != nvml.NVML_FEATURE_ENABLED:
                continue
            if _to_switch(nvml, handle, link):
                switched += 1
            elif (other := addresses.get(_address(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link)))) is not None:
                direct[other] += 1
        except nvml.NVMLError:
            # No such link, a link that is down, or a GPU without NVLink.
            continue
    return direct, switched


def _to_switch(nvml: Any, handle: Any, link: int) -> bool:
    try:
        kind = nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link)
    except nvml.NVMLError:
        # Drivers that do not tell have the other end's address looked up.
        return False
    return bool(kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH)


def _address(pci: Any) -> str:
    text = pci.busId.decode() if isinstance(pci.busId, bytes) else str(pci.busId)
    # The domain is told with four digits in one place and eight in another.
    domain, _, rest = text.strip("\0").upper().partition(":")
    return f"{domain.lstrip('0')}:{rest}"

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tangram.node.backend import StartError
from tangram.node.ports import PortAllocator


def outgoing() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def test_each_port_is_given_once_and_can_be_listened_on() -> None:
    ports = PortAllocator()
    given = [ports.allocate() for _ in range(50)]
    assert len(set(given)) == 50
    assert all(20000 <= port <= 32767 for port in given)
    with socket.create_server(("127.0.0.1", given[0])):
        pass


@pytest.mark.skipif(outgoing() < 22000, reason="this system uses nearly all ports for outgoing connections")
def test_ports_lie_below_those_of_outgoing_connections() -> None:
    ports = PortAllocator(start=outgoing() - 1)
    first, second = ports.allocate(), ports.allocate()
    assert first < outgoing() and second < outgoing()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_passed_over(host: str) -> None:
    port = PortAllocator().allocate()
    with socket.create_server((host, port)):
        assert PortAllocator(start=port).allocate() != port


def test_a_released_port_is_not_given_again_soon_and_a_reserved_one_never() -> None:
    ports = PortAllocator(start=21000)
    first = ports.allocate()
    ports.release(first)
    ports.reserve([first + 1, first + 2])
    later = [ports.allocate() for _ in range(20)]
    assert not {first, first + 1, first + 2} & set(later)
    ports.release(first + 1)
    ports.release(40000)


def test_the_choice_goes_round_and_ends_with_an_error_when_none_is_free() -> None:
    ports = PortAllocator(start=20005)
    rest = PortAllocator(start=20005).allocate()
    ports.reserve(port for port in range(20000, 32768) if port != rest)
    assert ports.allocate() == rest
    with pytest.raises(StartError, match=r"no port from 20000 to \d+ is free; stop what uses them"):
        ports.allocate()
    ports.release(rest)
    assert ports.allocate() == rest

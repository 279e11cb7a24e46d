"""MPS against a stand-in for the control program that keeps its state in the pipe directory."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from packer.inventory import Device
from tangram.node.mechanisms.mps import Mps, MpsError

ONE, TWO = (Device(f"GPU-{i}", "n", "NVIDIA H200", 143_771, mechanisms=frozenset({"mps"})) for i in (1, 2))
CONTROL = """#!/bin/sh
state="$CUDA_MPS_PIPE_DIRECTORY/state"
if [ "$1" = -d ]; then
    [ -e "$CUDA_MPS_PIPE_DIRECTORY/broken" ] && { echo "no permission" >&2; exit 1; }
    [ -e "$state" ] && { echo "An instance of this daemon is already running" >&2; exit 1; }
    echo "$CUDA_VISIBLE_DEVICES" > "$state"
    exit 0
fi
[ -e "$state" ] || { echo "Cannot find MPS control daemon process" >&2; exit 1; }
read -r said
case "$said" in
    get_server_list) cat "$CUDA_MPS_PIPE_DIRECTORY/servers" 2>/dev/null || true ;;
    "get_client_list 4711") echo 99; echo 98 ;;
    quit) rm "$state" ;;
    *) exit 1 ;;
esac
"""


@pytest.fixture
def mps(tmp_path: Path) -> Mps:
    control = tmp_path / "control"
    control.write_text(CONTROL)
    control.chmod(0o700)
    return Mps(tmp_path / "m", str(control))


def pipes(mps: Mps, device: Device) -> Path:
    return Path(mps.settings(device, 1, 0).env["CUDA_MPS_PIPE_DIRECTORY"])


def test_a_process_is_told_its_device_its_daemon_and_its_bounds(mps: Mps) -> None:
    env = mps.settings(ONE, 8192, 30).env
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=8192M"
    assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in mps.settings(ONE, 8192, 0).env
    assert pipes(mps, ONE) != pipes(mps, TWO)


def test_each_device_has_a_daemon_of_its_own(mps: Mps) -> None:
    mps.start(ONE)
    mps.start(ONE)
    assert (mps.running(ONE), mps.running(TWO)) == (True, False)
    assert (pipes(mps, ONE) / "state").read_text() == "GPU-1\n"
    assert stat.S_IMODE(pipes(mps, ONE).stat().st_mode) == 0o700
    mps.start(TWO)
    mps.stop(ONE)
    mps.stop(ONE)
    assert (mps.running(ONE), mps.running(TWO)) == (False, True)


def test_who_is_attached_is_asked_of_the_daemon(mps: Mps) -> None:
    with pytest.raises(MpsError, match="Cannot find MPS control daemon"):
        mps.clients(ONE)
    mps.start(ONE)
    assert mps.clients(ONE) == ()
    (pipes(mps, ONE) / "servers").write_text("4711\n")
    assert mps.clients(ONE) == (98, 99)


def test_what_keeps_a_daemon_from_starting_is_said(mps: Mps, tmp_path: Path) -> None:
    pipes(mps, ONE).mkdir(parents=True)
    (pipes(mps, ONE) / "broken").touch()
    with pytest.raises(MpsError, match="the MPS daemon of GPU-1 does not start: no permission"):
        mps.start(ONE)
    with pytest.raises(MpsError, match="is not installed; it comes with the NVIDIA driver"):
        Mps(tmp_path, str(tmp_path / "nothing")).start(TWO)
    with pytest.raises(MpsError, match="choose a shorter directory"):
        Mps(tmp_path / ("x" * 100)).start(ONE)

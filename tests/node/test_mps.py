"""MPS against a stand-in for the control program that keeps its state in the pipe directory."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from packer.inventory import Device
from tangram.node.mechanisms import GivenSlice
from tangram.node.mechanisms.mps import Mps, MpsError

CONTROL = """#!/bin/sh
state="$CUDA_MPS_PIPE_DIRECTORY/state"
if [ "$1" = -d ]; then
    [ -e "$CUDA_MPS_PIPE_DIRECTORY/broken" ] && { echo "no permission" >&2; exit 1; }
    [ -e "$state" ] && { echo "An instance of this daemon is already running" >&2; exit 1; }
    echo "$CUDA_VISIBLE_DEVICES $TANGRAM_ROLE ${TANGRAM_TOKEN:-no token}" > "$state"
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


def env(mps: Mps, device: str, memory: int = 1, compute: int = 0) -> dict[str, str]:
    gpu = Device(device, "n", "NVIDIA H200", 143_771, mechanisms=frozenset({"mps"}))
    return dict(mps.settings(GivenSlice("mps", (gpu,), compute, 1, memory)).env)


def pipes(mps: Mps, device: str) -> Path:
    return Path(env(mps, device)["CUDA_MPS_PIPE_DIRECTORY"])


def test_a_process_is_told_its_device_its_daemon_and_its_bounds(mps: Mps) -> None:
    given = env(mps, "GPU-1", 8192, 30)
    assert given["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert given["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=8192M"
    assert given["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in env(mps, "GPU-1", 8192)
    assert pipes(mps, "GPU-1") != pipes(mps, "GPU-2")


def test_each_device_has_a_daemon_of_its_own(mps: Mps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANGRAM_ROLE", "controller")
    monkeypatch.setenv("TANGRAM_TOKEN", "secret")
    mps.start("GPU-1")
    mps.start("GPU-1")
    assert (mps.running("GPU-1"), mps.running("GPU-2")) == (True, False)
    assert (pipes(mps, "GPU-1") / "state").read_text() == "GPU-1 mps no token\n"
    assert stat.S_IMODE(pipes(mps, "GPU-1").stat().st_mode) == 0o700
    mps.start("GPU-2")
    assert mps.daemons() == ("GPU-1", "GPU-2")
    mps.stop("GPU-1")
    mps.stop("GPU-1")
    assert (mps.running("GPU-1"), mps.running("GPU-2")) == (False, True)
    assert mps.daemons() == ("GPU-2",)


def test_who_is_attached_is_asked_of_the_daemon(mps: Mps) -> None:
    with pytest.raises(MpsError, match="Cannot find MPS control daemon"):
        mps.attached(pipes(mps, "GPU-1"))
    mps.start("GPU-1")
    assert mps.attached(pipes(mps, "GPU-1")) == ()
    (pipes(mps, "GPU-1") / "servers").write_text("4711\n")
    assert mps.attached(pipes(mps, "GPU-1")) == (98, 99)


def test_a_long_state_directory_has_its_pipes_elsewhere(mps: Mps, tmp_path: Path) -> None:
    deep = Mps(tmp_path / ("x" * 100), str(tmp_path / "control"))
    assert len(str(pipes(deep, "GPU-1") / "control_lock")) <= 107
    assert pipes(deep, "GPU-1") != pipes(Mps(tmp_path / ("y" * 100)), "GPU-1")


def test_what_keeps_a_daemon_from_starting_is_said(mps: Mps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes(mps, "GPU-1").mkdir(parents=True)
    (pipes(mps, "GPU-1") / "broken").touch()
    with pytest.raises(MpsError, match="the MPS daemon of GPU-1 does not start: no permission"):
        mps.start("GPU-1")
    with pytest.raises(MpsError, match="is not installed; it comes with the NVIDIA driver"):
        Mps(tmp_path, str(tmp_path / "nothing")).start("GPU-2")
    (tmp_path / "file").touch()
    with pytest.raises(MpsError, match="cannot be made: Not a directory"):
        Mps(tmp_path / "file").start("GPU-2")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("z" * 80)))
    with pytest.raises(MpsError, match="choose a shorter directory"):
        Mps(tmp_path / ("x" * 100)).start("GPU-1")

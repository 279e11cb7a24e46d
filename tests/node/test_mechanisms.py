from __future__ import annotations

import logging
from pathlib import Path

import pytest

from packer.inventory import Device
from tangram.core.convert import CORES_LABEL, cores
from tangram.node import mechanisms
from tangram.node.backend import StartError
from tangram.node.mechanisms.virtual import CpuGroups, cpu_max, find_parent

VIRTUAL = Device("node-a/gpu-0", "node-a", "virtual", 8192, labels={CORES_LABEL: "1500"})
GPU = Device("GPU-1-2-3", "node-a", "NVIDIA H200", 143771, mechanisms=frozenset({"timeslice"}))


# --- which settings ---


def test_timeslice_shows_the_process_its_gpu_alone() -> None:
    settings = mechanisms.settings("timeslice", [GPU], 50)
    assert settings.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1-2-3"}
    assert settings.cpu_cores is None


def test_virtual_compute_is_a_share_of_the_devices_cores() -> None:
    settings = mechanisms.settings("virtual", [VIRTUAL], 50)
    assert (dict(settings.env), settings.cpu_cores) == ({}, 0.75)
    assert cores([VIRTUAL], 100) == 1.5
    assert cores([VIRTUAL], 0) is None, "best effort"
    assert cores([GPU], 50) is None, "no cores are declared"


@pytest.mark.parametrize("mechanism", ["mps", "mig", "nonsense"])
def test_another_mechanism_is_refused_with_the_known_ones(mechanism: str) -> None:
    with pytest.raises(StartError, match=f"slice.mechanism '{mechanism}' .* use timeslice or virtual"):
        mechanisms.settings(mechanism, [GPU], 50)


@pytest.mark.parametrize(
    ("share", "written"),
    [
        (1.0, "20000 20000"),
        (0.25, "5000 20000"),
        (2.5, "50000 20000"),
        (0.05, "1000 20000"),
        # The kernel takes no quota under 1 ms: small shares have a longer period.
        (0.04, "4000 100000"),
        (0.01, "1000 100000"),
        (0.0001, "1000 100000"),
    ],
)
def test_the_quota_is_the_share_of_a_period(share: float, written: str) -> None:
    assert cpu_max(share) == written


# --- where groups can be made ---


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A stand-in for /sys/fs/cgroup: the root and `system.slice` give their children the cpu controller."""
    mount = tmp_path / "cgroup"
    for group, given in (("", "cpu memory"), ("system.slice", "cpu"), ("system.slice/own.service", "")):
        (mount / group).mkdir(exist_ok=True)
        (mount / group / "cgroup.subtree_control").write_text(f"{given}\n")
        (mount / group / "cgroup.procs").write_text("")
    return mount


def own(mount: Path, text: str) -> Path:
    file = mount.parent / "self"
    file.write_text(text)
    return file


def test_the_nearest_group_that_can_have_limited_children_is_the_parent(mount: Path) -> None:
    assert find_parent(mount, own(mount, "0::/system.slice/own.service\n")) == mount / "system.slice"
    assert find_parent(mount, own(mount, "0::/system.slice\n")) == mount / "system.slice"
    assert find_parent(mount, own(mount, "0::/\n")) == mount
    # A group in a namespace of its own, of which nothing is seen here.
    assert find_parent(mount, own(mount, "0::/gone/away\n")) == mount


@pytest.mark.parametrize("text", ["", "4:memory:/x\n1:cpu:/\n", "0::/../../elsewhere\n"])
def test_without_a_group_of_version_2_in_sight_there_is_none(mount: Path, text: str) -> None:
    assert find_parent(mount, own(mount, text)) is None
    assert find_parent(mount, mount / "no-such-file") is None


def test_without_the_cpu_controller_there_is_none(mount: Path) -> None:
    for file in mount.rglob("cgroup.subtree_control"):
        file.write_text("memory pids\n")
    assert find_parent(mount, own(mount, "0::/system.slice/own.service\n")) is None
    assert find_parent(mount / "not-mounted", own(mount, "0::/system.slice\n")) is None


# --- groups ---


@pytest.fixture
def groups(mount: Path, tmp_path: Path) -> CpuGroups:
    return CpuGroups(tmp_path / "state", mount / "system.slice")


def made(mount: Path) -> list[Path]:
    return sorted((mount / "system.slice").glob("tangram-*"))


def test_an_instance_enters_a_group_of_its_own_and_is_limited_later(groups: CpuGroups, mount: Path) -> None:
    wrapper = groups.enter("digits-a", 0.5)
    (group,) = made(mount)
    assert group.name.endswith("-digits-a")
    assert wrapper[:2] == ("/bin/sh", "-c") and wrapper[3:] == (str(group), "0.5")
    assert (group / "cpu.max").read_text() == "max 20000"
    groups.limit("digits-a", 0.5)
    assert (group / "cpu.max").read_text() == "10000 20000"
    # Started again, it is not slowed by what was its limit.
    groups.enter("digits-a", 0.5)
    assert (group / "cpu.max").read_text() == "max 20000"


def test_a_group_goes_with_its_instance(groups: CpuGroups, mount: Path) -> None:
    groups.enter("a", 0.5)
    (group,) = made(mount)
    groups.remove("a")
    assert group.exists(), "as long as there is something in it"
    (group / "cpu.max").unlink()
    groups.remove("a")
    groups.remove("a")
    assert made(mount) == []


def test_groups_of_what_is_gone_are_cleaned_up_and_those_of_others_left(
    groups: CpuGroups, mount: Path, tmp_path: Path
) -> None:
    for name in ("live", "gone"):
        groups.enter(name, 0.5)
    CpuGroups(tmp_path / "other", mount / "system.slice").enter("gone", 0.5)
    (mount / "system.slice" / "tangram-by-hand").mkdir()
    for group in made(mount):
        (group / "cpu.max").unlink(missing_ok=True)
    before = made(mount)
    groups.clean({"live"})
    (removed,) = set(before) - set(made(mount))
    assert removed.name.endswith("-gone")
    # The same installation by its state directory, another by another.
    CpuGroups(tmp_path / "other", mount / "system.slice").clean(set())
    assert {group.name.rpartition("-")[2] for group in made(mount)} == {"live", "hand"}


def test_without_a_parent_nothing_is_done(tmp_path: Path) -> None:
    groups = CpuGroups(tmp_path, None)
    assert groups.enter("a", 0.5) == ()
    groups.limit("a", 0.5)
    groups.remove("a")
    groups.clean(set())


def test_where_no_group_can_be_made_the_instance_has_to_keep_its_own_budget(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    groups = CpuGroups(tmp_path, tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        assert groups.enter("a", 0.5) == ()
    assert "no cgroup for a, its CPU budget is its own to keep" in caplog.text
    groups.limit("a", 0.5)


def test_a_limit_that_cannot_be_set_is_said(groups: CpuGroups, mount: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups.enter("a", 0.5)
    (group,) = made(mount)
    (group / "cpu.max").unlink()
    (group / "cpu.max").mkdir()
    with caplog.at_level(logging.WARNING):
        groups.limit("a", 0.5)
    assert "the CPU of a is not held to 0.5 cores" in caplog.text

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from packer.inventory import Device, MigInstance
from tangram.core.convert import CORES_LABEL, cores
from tangram.node.backend import StartError
from tangram.node.mechanisms import GivenSlice, Mechanisms, offered
from tangram.node.mechanisms.mps import CONTROL
from tangram.node.mechanisms.virtual import CpuGroups, cpu_max, find_parent

VIRTUAL = Device("node-a/gpu-0", "node-a", "virtual", 8192, labels={CORES_LABEL: "1500"})
GPU = Device("GPU-1-2-3", "node-a", "NVIDIA H200", 143771, mechanisms=frozenset({"timeslice"}))


def given(mechanism: str, *devices: Device, compute: int = 50, memory: int = 8192, **fields: Any) -> GivenSlice:
    return GivenSlice(mechanism, devices, compute, memory, memory, **fields)


@pytest.fixture
def mechanisms(tmp_path: Path) -> Mechanisms:
    return Mechanisms(tmp_path, control=str(tmp_path / "no-control"))


# --- which settings ---


def test_timeslice_shows_the_process_its_gpu_alone(mechanisms: Mechanisms) -> None:
    settings = mechanisms.settings(given("timeslice", GPU))
    assert settings.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1-2-3"}
    assert settings.cpu_cores is None


def test_timeslice_shows_several_gpus_in_order(mechanisms: Mechanisms) -> None:
    settings = mechanisms.settings(given("timeslice", GPU, replace(GPU, id="GPU-0")))
    assert settings.env["CUDA_VISIBLE_DEVICES"] == "GPU-1-2-3,GPU-0"


def test_virtual_compute_is_a_share_of_the_devices_cores(mechanisms: Mechanisms) -> None:
    settings = mechanisms.settings(given("virtual", VIRTUAL))
    assert (dict(settings.env), settings.cpu_cores) == ({}, 0.75)
    assert cores([VIRTUAL], 100) == 1.5
    assert cores([VIRTUAL], 0) is None, "best effort"
    assert cores([GPU], 50) is None, "no cores are declared"


@pytest.mark.parametrize("mechanism", ["hami", "nonsense"])
def test_another_mechanism_is_refused_with_the_known_ones(mechanisms: Mechanisms, mechanism: str) -> None:
    with pytest.raises(StartError, match=f"slice.mechanism '{mechanism}' .* use mig, mps, timeslice, virtual"):
        mechanisms.settings(given(mechanism, GPU))


def test_what_keeps_a_device_from_giving_a_slice_is_said(mechanisms: Mechanisms) -> None:
    with pytest.raises(StartError, match=r"the MPS daemon of GPU-1-2-3 does not start: .* is not installed"):
        mechanisms.prepare(given("mps", GPU), {})
    with pytest.raises(StartError, match=r"NVML cannot be used|No module named"):
        cut = replace(GPU, model="NVIDIA H200-141", memory_mib=143_771)
        mechanisms.prepare(given("mig", cut, mig=(MigInstance(0, "1g.18gb"),)), {})


def test_a_gpu_offers_what_its_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = tmp_path / CONTROL
    control.touch(mode=0o700)
    assert offered(GPU, cut=False, capability=(9, 0)) == {"timeslice"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert offered(GPU, cut=False, capability=(9, 0)) == {"timeslice", "mps"}
    assert offered(GPU, cut=False, capability=(6, 1)) == {"timeslice"}, "MPS holds nobody to anything before Volta"
    assert offered(GPU, cut=True, capability=(9, 0)) == {"mig"}
    assert offered(replace(GPU, model="Tesla T4"), cut=True, capability=(9, 0)) == frozenset()


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

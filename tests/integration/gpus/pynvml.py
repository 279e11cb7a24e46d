"""A stand-in for NVML: two H100, the second cut by MIG. What is cut lies in a file, as the driver outlives processes.

It keeps the driver's rules: slots do not overlap, and an instance with a process on it is not destroyed.
"""

import ctypes
import json
import os
from pathlib import Path
from types import SimpleNamespace

PROFILES = [  # name, compute slices, memory slots, starts
    ("1g.10gb", 1, 1, (0, 1, 2, 3, 4, 5, 6)),
    ("1g.20gb", 1, 2, (0, 2, 4, 6)),
    ("2g.20gb", 2, 2, (0, 2, 4)),
    ("3g.40gb", 3, 4, (0, 4)),
    ("4g.40gb", 4, 4, (0,)),
    ("7g.80gb", 7, 8, (0,)),
]
NVML_DEVICE_MIG_ENABLE = NVML_FEATURE_ENABLED = 1
NVML_GPU_INSTANCE_PROFILE_COUNT = 18
NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED = 0
nvmlEventTypeXidCriticalError = 8
nvmlMemory_v2 = 2
for _slices in (1, 2, 3, 4, 6, 7, 8):
    globals()[f"NVML_COMPUTE_INSTANCE_PROFILE_{_slices}_SLICE"] = _slices

STATE = Path(os.environ["FAKE_GPUS"])


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):  # noqa: N801
    pass


class NVMLError_FunctionNotFound(NVMLError):  # noqa: N801
    pass


class NVMLError_Timeout(NVMLError):  # noqa: N801
    pass


class c_nvmlGpuInstancePlacement_t(ctypes.Structure):  # noqa: N801
    _fields_ = (("start", ctypes.c_uint), ("size", ctypes.c_uint))


c_nvmlGpuInstance_t = c_nvmlComputeInstance_t = ctypes.c_void_p


def _read():
    return json.loads(STATE.read_text()) if STATE.exists() else {"next": 1, "instances": {}}


def _write(state):
    STATE.write_text(json.dumps(state))


def _in_use(number):
    wanted = f"CUDA_VISIBLE_DEVICES=MIG-{number}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environ.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


def nvmlInit():
    pass


def nvmlShutdown():
    pass


def nvmlEventSetCreate():
    return "events"


def nvmlDeviceRegisterEvents(_, kinds, events):
    pass


def nvmlEventSetWait_v2(_, timeout_ms):
    raise NVMLError_Timeout


def nvmlSystemGetDriverVersion():
    return "570.1"


def nvmlDeviceGetCount():
    return 2


def nvmlDeviceGetHandleByIndex(index):
    return f"GPU-{index}"


def nvmlDeviceGetHandleByUUID(uuid):
    return uuid


def nvmlDeviceGetUUID(handle):
    return handle


def nvmlDeviceGetName(_):
    return "NVIDIA H100 80GB HBM3"


def nvmlDeviceGetCudaComputeCapability(_):
    return 9, 0


def nvmlDeviceGetMemoryInfo(_, version=None):
    return SimpleNamespace(total=81_559 << 20, reserved=551 << 20)


def nvmlDeviceGetMigMode(handle):
    return (int(handle == "GPU-1"),) * 2


def nvmlDeviceGetPciInfo(handle):
    return SimpleNamespace(busId=f"0000:0{handle[-1]}:00.0")


def nvmlDeviceGetNvLinkState(_, link):
    raise NVMLError_NotSupported


def nvmlDeviceGetTopologyCommonAncestor(_, other):
    return 40


def nvmlDeviceGetGpuInstanceProfileInfo(_, number):
    if number >= len(PROFILES):
        raise NVMLError_NotSupported
    name, slices, _, starts = PROFILES[number]
    size = 1000 * int(name.partition(".")[2].removesuffix("gb"))
    return SimpleNamespace(
        id=number, name=f"MIG {name}".encode(), sliceCount=slices, instanceCount=len(starts), memorySizeMB=size
    )


def nvmlDeviceGetGpuInstances(_, profile, out, count):
    numbers = [int(n) for n, i in _read()["instances"].items() if i["profile"] == profile]
    for place, number in enumerate(numbers):
        out[place] = number
    count._obj.value = len(numbers)


def nvmlGpuInstanceGetInfo(number):
    start = _read()["instances"][str(number)]["start"]
    return SimpleNamespace(id=number, placement=SimpleNamespace(start=start))


def nvmlDeviceGetGpuInstancePossiblePlacements(_, profile, out, count):
    _, _, size, starts = PROFILES[profile]
    for place, start in enumerate(starts):
        out[place].start, out[place].size = start, size
    count._obj.value = len(starts)


def nvmlDeviceCreateGpuInstanceWithPlacement(_, profile, placement):
    state, start, size = _read(), placement._obj.start, PROFILES[profile][2]
    for other in state["instances"].values():
        if other["start"] < start + size and start < other["start"] + PROFILES[other["profile"]][2]:
            raise NVMLError("Insufficient Resources")
    number, state["next"] = state["next"], state["next"] + 1
    state["instances"][str(number)] = {"profile": profile, "start": start, "inner": False}
    _write(state)
    return number


def nvmlGpuInstanceGetComputeInstanceProfileInfo(number, slices, _):
    if PROFILES[_read()["instances"][str(number)]["profile"]][1] != slices:
        raise NVMLError_NotSupported
    return SimpleNamespace(id=slices, instanceCount=1)


def nvmlGpuInstanceCreateComputeInstance(number, _):
    state = _read()
    state["instances"][str(number)]["inner"] = True
    _write(state)


def nvmlGpuInstanceGetComputeInstances(number, _, out, count):
    there = _read()["instances"][str(number)]["inner"]
    if there:
        out[0] = number
    count._obj.value = int(there)


def nvmlComputeInstanceDestroy(number):
    if _in_use(number):
        raise NVMLError("In use by another client")
    state = _read()
    state["instances"][str(number)]["inner"] = False
    _write(state)


def nvmlGpuInstanceDestroy(number):
    state = _read()
    del state["instances"][str(number)]
    _write(state)


def nvmlDeviceGetMaxMigDeviceCount(_):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(_, index):
    shown = [n for n, i in _read()["instances"].items() if i["inner"]]
    if index >= len(shown):
        raise NVMLError("Not Found")
    return f"MIG-{shown[index]}"


def nvmlDeviceGetGpuInstanceId(handle):
    return int(handle.removeprefix("MIG-"))

"""What operators declare: `Model` and `Fleet`, one schema for YAML files, the REST API and the Kubernetes resource.

Field names are camelCase on the wire (as in Kubernetes) and snake_case in Python. Quantities are Kubernetes quantities
on the wire; in Python they are integers: MiB for memory, thousandths of a core for CPU. Unknown fields are errors.

`load_documents` reads a YAML file, `parse_documents` takes what a REST client sent. Both raise `SpecError`, whose
text names the document, the path of the field, the value and the mend, and both take all or nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, Overflow
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

API_VERSION: Final = "tangram.dev/v1alpha1"
#: Replicas of one model at most: a slip of the finger must not have the planner place a billion.
MAX_REPLICAS: Final = 10_000

_SUFFIXES: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{s: Decimal(1000) ** i for i, s in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{s: Decimal(1024) ** i for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_QUANTITY: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([numkMGTPE]i?|Ki|)")
_MIB: Final = 1024 * 1024
_LARGEST: Final = Decimal(2) ** 63


class SpecError(ValueError):
    """A document that cannot be accepted; nothing of its file or request was applied."""


def parse_quantity(value: str | int | float) -> Decimal:
    """The plain number a Kubernetes quantity stands for ("500m" is 0.5, "2Gi" is 2147483648)."""
    if isinstance(value, bool):
        raise ValueError("must be a quantity such as 512Mi or 500m, not a boolean")
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a quantity; write for example 512Mi, 2Gi, 500m or 0.5")
    try:
        number = Decimal(match[1]) * _SUFFIXES[match[2]]
    except (InvalidOperation, KeyError):
        raise ValueError(f"{value!r} is not a quantity; write for example 512Mi, 2Gi, 500m or 0.5") from None
    except Overflow:
        number = Decimal("Infinity")
    if number > _LARGEST:
        raise ValueError(f"{value!r} is more than a quantity can be; write at most 8Ei")
    if number < 0:
        raise ValueError(f"{value!r} is negative; a quantity is zero or more")
    return number


def _to_mib(value: object) -> object:
    # Bytes are rounded up, so that what is reserved always covers what was asked for.
    if isinstance(value, str | int | float):
        return math.ceil(parse_quantity(value) / _MIB)
    return value


def _to_milli(value: object) -> object:
    if isinstance(value, str | int | float):
        return math.ceil(parse_quantity(value) * 1000)
    return value


def _from_mib(value: int | str) -> str:
    if isinstance(value, str):  # a default as written, on its way into a JSON schema
        return value
    return f"{value // 1024}Gi" if value and value % 1024 == 0 else f"{value}Mi"


def _from_milli(value: int) -> str:
    return str(value // 1000) if value % 1000 == 0 else f"{value}m"


_QUANTITY_SCHEMA: Final = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
    "pattern": r"^[+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?([numkMGTPE]|[KMGTPE]i)?$",
}
#: Memory as a Kubernetes quantity of bytes on the wire, integer MiB (rounded up) in Python.
MiB = Annotated[
    int, BeforeValidator(_to_mib), PlainSerializer(_from_mib, when_used="json"), WithJsonSchema(_QUANTITY_SCHEMA)
]
#: CPU as a Kubernetes quantity of cores on the wire, integer thousandths of a core (rounded up) in Python.
MilliCPU = Annotated[
    int, BeforeValidator(_to_milli), PlainSerializer(_from_milli, when_used="json"), WithJsonSchema(_QUANTITY_SCHEMA)
]
#: A DNS-1123 label, as Kubernetes wants it of object names; short enough that replica names stay labels too.
Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=52, strict=True)
]
Percent = Annotated[int, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Doc(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_default=True)


class Metadata(_Doc):
    name: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


# --- Model ---------------------------------------------------------------------------------------------------------


class RuntimeKind(StrEnum):
    EMBEDDED = "embedded"
    """Our own small Open Inference Protocol server around a Python class (`runtime.model`)."""
    COMMAND = "command"
    """Any server that listens on `{port}`."""


class Protocol(StrEnum):
    OIP = "oip"
    OPENAI = "openai"
    HTTP = "http"


class EnvVar(_Doc):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str = ""


class Readiness(_Doc):
    """HTTP GET on the replica's port; 2xx is ready."""

    path: Annotated[str, StringConstraints(pattern=r"^/")] = "/v2/health/ready"
    period_seconds: Positive = 1.0
    timeout_seconds: Positive = 1.0
    failure_threshold: Annotated[int, Field(ge=1)] = 3


class Runtime(_Doc):
    kind: RuntimeKind = RuntimeKind.EMBEDDED
    model: str | None = None
    """Embedded: path of the Python file that defines the model, relative to the fleet's file."""
    command: tuple[str, ...] = ()
    """Command: argv; `{port}`, `{host}`, `{model}` and `{replica}` are replaced. Run without a shell."""
    image: str | None = None
    """Container image; used on Kubernetes only."""
    working_dir: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port inside a container; on one machine each replica gets a free port of its own."""
    protocol: Protocol = Protocol.OIP
    readiness: Readiness = Readiness()
    env: tuple[EnvVar, ...] = ()
    progress_deadline_seconds: Positive = 120.0
    """A start that is not ready after this long is ended, said so, and tried elsewhere with back-off."""
    termination_grace_period_seconds: NonNegative = 10.0
    """Seconds between SIGTERM and SIGKILL."""

    @field_validator("command", mode="before")
    @classmethod
    def _argv(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(
                "is a string; write a list of arguments, for example [python, server.py, --port, '{port}']"
            )
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind is RuntimeKind.EMBEDDED and not self.model:
            raise ValueError("model is missing; an embedded runtime names the Python file that defines the model")
        if self.kind is RuntimeKind.COMMAND and not self.command and not self.image:
            raise ValueError("command is missing; a command runtime gives the argv to start")
        if len({e.name for e in self.env}) != len(self.env):
            raise ValueError("env names a variable twice; keep one entry of each name")
        return self


class ResourceList(_Doc):
    cpu: MilliCPU = 0
    memory: MiB = 0


class Resources(_Doc):
    """What an Instance takes of its Node's host."""

    requests: ResourceList = ResourceList()


class Mechanism(StrEnum):
    VIRTUAL = "virtual"
    TIMESLICE = "timeslice"
    MPS = "mps"
    MIG = "mig"
    HAMI = "hami"
    DRA = "dra"


class SliceMemory(_Doc):
    request: Annotated[MiB, Field(ge=1)]
    """MiB guaranteed on the device."""
    limit: Annotated[MiB, Field(ge=1)] | None = None
    """MiB it may grow to while the device has room; the request where absent."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.limit is not None and self.limit < self.request:
            raise ValueError(
                f"limit {_from_mib(self.limit)} is less than request {_from_mib(self.request)}; "
                "raise the limit or lower the request"
            )
        return self

    @property
    def effective_limit(self) -> int:
        """MiB an Instance may grow to."""
        return self.request if self.limit is None else self.limit


class DeviceSelector(_Doc):
    """Which Devices a Slice may lie on; every given condition must hold."""

    models: tuple[str, ...] = ()
    """Device models allowed, any of them."""
    match_labels: dict[str, str] = {}
    """Labels of the Device or its Node."""


class SliceSpec(_Doc):
    memory: SliceMemory
    compute: Percent = 0
    """Percent of the device's compute, hard; 0 is best effort."""
    mechanism: Mechanism = Mechanism.VIRTUAL
    device_selector: DeviceSelector = DeviceSelector()


class MetricType(StrEnum):
    CPU = "cpu"
    """Percent of the CPU a replica may use (its compute share on a virtual device, else `resources.requests.cpu`)."""
    MEMORY = "memory"
    """Percent of `resources.requests.memory` in use."""
    DEVICE_MEMORY = "deviceMemory"
    """Percent of `slice.memory.request` in use."""
    CONCURRENCY = "concurrency"
    """Requests in flight and queued, a replica."""


class Metric(_Doc):
    type: MetricType
    target: Positive
    """Percent, or requests for `concurrency`: the mean a ready replica should not exceed."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.type is not MetricType.CONCURRENCY and self.target > 100:
            raise ValueError(f"target {self.target:g} is more than 100 percent; give a percent up to 100")
        return self


class PolicyType(StrEnum):
    PODS = "Pods"
    PERCENT = "Percent"


class HPAPolicy(_Doc):
    type: PolicyType
    value: Annotated[int, Field(gt=0)]
    period_seconds: Annotated[int, Field(gt=0, le=1800)]


class SelectPolicy(StrEnum):
    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


class ScalingRules(_Doc):
    """One direction of HPA v2's `behavior`; what is absent takes Tangram's default (docs/autoscaling.md)."""

    stabilization_window_seconds: Annotated[float, Field(ge=0, le=3600)] | None = None
    select_policy: SelectPolicy = SelectPolicy.MAX
    policies: tuple[HPAPolicy, ...] | None = None
    tolerance: Annotated[float, Field(ge=0, lt=1)] | None = None


class Behavior(_Doc):
    scale_up: ScalingRules = ScalingRules()
    scale_down: ScalingRules = ScalingRules()


class ScalingMode(StrEnum):
    HONOUR = "honour"
    """Plan for at most `targetQPS` requests per second a ready replica."""
    LEARN = "learn"
    """`targetQPS` is only a first guess."""


class Objective(_Doc):
    """A latency goal that can stand in the place of a QPS target."""

    latency_milliseconds: Positive
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0


class Scaling(_Doc):
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """A fixed count, set by hand; the autoscaler then advises but does not act. Absent: automatic."""
    target_qps: Annotated[Positive | None, Field(alias="targetQPS")] = None
    """Requests per second that one ready replica should serve."""
    mode: ScalingMode = ScalingMode.HONOUR
    metrics: tuple[Metric, ...] = ()
    behavior: Behavior = Behavior()
    objective: Objective | None = None
    idle_seconds: NonNegative = 60.0
    """Without a request for this long, a model whose minReplicas is 0 goes to zero."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"minReplicas {self.min_replicas} is greater than maxReplicas {self.max_replicas}; "
                "lower minReplicas or raise maxReplicas"
            )
        if self.replicas is not None and self.replicas > self.max_replicas:
            raise ValueError(
                f"replicas {self.replicas} is greater than maxReplicas {self.max_replicas}; "
                "lower replicas or raise maxReplicas"
            )
        if len({m.type for m in self.metrics}) != len(self.metrics):
            raise ValueError("metrics names a type twice; keep one entry of each type")
        return self


class Queue(_Doc):
    """Bounds of a model's waiting room in each gateway worker."""

    max_requests: Annotated[int, Field(ge=0)] = 1000
    max_memory: MiB = Field(default="64Mi")  # type: ignore[assignment]
    max_seconds: Positive = 30.0


class Retry(_Doc):
    attempts: Annotated[int, Field(ge=0, le=5)] = 1
    """Repeats after a failure before the first response byte."""
    all_methods: bool = False
    """Also repeat requests that the protocol does not call safe to repeat."""


class Traffic(_Doc):
    timeout_seconds: Positive = 60.0
    """Until the first byte of an answer, waiting in the queue included; also between bytes of the answer."""
    queue: Queue = Queue()
    concurrency_per_replica: Annotated[int, Field(ge=0)] = 32
    """Requests in flight to one replica at most; 0 is unbounded."""
    retry: Retry = Retry()
    drain_seconds: NonNegative = 30.0
    """How long a draining replica may finish what is in flight."""


class ModelSpec(_Doc):
    project: Name = "default"
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher is served first when the fleet cannot hold all."""
    runtime: Runtime
    resources: Resources = Resources()
    slice: SliceSpec
    scaling: Scaling = Scaling()
    traffic: Traffic = Traffic()


class Model(_Doc):
    api_version: Literal["tangram.dev/v1alpha1"] = API_VERSION
    kind: Literal["Model"] = "Model"
    metadata: Metadata
    spec: ModelSpec

    @property
    def name(self) -> str:
        """`metadata.name`, unique in a fleet."""
        return self.metadata.name

    @property
    def revision(self) -> str:
        """Eight hex digits over the fields that shape the process; a replica of another revision must be replaced."""
        shape = self.spec.model_dump(mode="json", include={"runtime", "resources", "slice"}, by_alias=True)
        for later in ("readiness", "progressDeadlineSeconds", "terminationGracePeriodSeconds"):
            del shape["runtime"][later]
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:8]


# --- Fleet ---------------------------------------------------------------------------------------------------------


class DeviceSpec(_Doc):
    name: Name
    model: str = "virtual"
    """What kind of device it stands for; `deviceSelector.models` matches it."""
    memory: Annotated[MiB, Field(ge=1)]
    reserve: MiB = 0
    """Kept free for driver and context overhead."""
    cores: Annotated[MilliCPU, Field(ge=1)]
    """CPU cores that stand for 100 percent of the device's compute."""
    max_clients: Annotated[int, Field(ge=1)] = 48
    labels: dict[str, str] = {}

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.reserve >= self.memory:
            raise ValueError(
                f"reserve {_from_mib(self.reserve)} leaves nothing of memory {_from_mib(self.memory)}; lower it"
            )
        return self


class NodeSpec(_Doc):
    name: Name
    cpu: MilliCPU | None = None
    """Host CPU to give to Instances; absent is unbounded."""
    memory: MiB | None = None
    """Host memory to give to Instances; absent is unbounded."""
    labels: dict[str, str] = {}
    devices: Annotated[tuple[DeviceSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _refuse_twice("devices", (d.name for d in self.devices))
        return self


class FleetSpec(_Doc):
    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _refuse_twice("nodes", (n.name for n in self.nodes))
        return self


class Fleet(_Doc):
    """Virtual nodes and devices of one machine. Devices that NVML finds are added to them."""

    api_version: Literal["tangram.dev/v1alpha1"] = API_VERSION
    kind: Literal["Fleet"] = "Fleet"
    metadata: Metadata
    spec: FleetSpec


def _refuse_twice(field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field} names {name!r} twice; names are unique")
        seen.add(name)


# --- Documents -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Documents:
    """What one file or request declares."""

    models: tuple[Model, ...] = ()
    fleet: Fleet | None = None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a mapping that gives a key twice is an error instead of losing the first."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is not text; write a word", key.start_mark)
        if key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice; keep one", key.start_mark
                )
            seen.add(key.value)
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> list[Any]:
    """The raw documents of a YAML file, with relative paths in `runtime` made absolute against the file's folder.

    Raises SpecError when the file cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"{path}: cannot be read: {reason}") from error
    try:
        documents = [d for d in yaml.load_all(text, Loader=_UniqueKeyLoader) if d is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(f"{path}: {where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not YAML: {error}") from error
    except RecursionError as error:
        raise SpecError(f"{path}: is nested too deeply; a Model or Fleet needs a dozen levels at most") from error
    except ValueError as error:
        # A scalar that looks like a number or a date and is none that Python can hold.
        raise SpecError(f"{path}: holds a value that cannot be read: {error}") from error
    base = path.resolve().parent
    for document in documents:
        runtime = _dig(document, "spec", "runtime")
        if isinstance(runtime, dict):
            for key in ("model", "workingDir"):
                if isinstance(value := runtime.get(key), str) and value:
                    runtime[key] = str(base / value)
            runtime.setdefault("workingDir", str(base))
    return documents


def load_documents(path: Path) -> Documents:
    """Read and check a YAML file of `Model` and `Fleet` documents; SpecError names what is wrong and where."""
    documents = read_yaml(path)
    if not documents:
        raise SpecError(f"{path}: holds no documents; declare at least one Model")
    try:
        return parse_documents(documents)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def parse_documents(documents: Sequence[Any]) -> Documents:
    """Check raw documents; all problems of all documents are reported in one SpecError, a line each."""
    models: list[Model] = []
    fleet: Fleet | None = None
    problems: list[str] = []
    for index, document in enumerate(documents, 1):
        kind = document.get("kind") if isinstance(document, dict) else None
        name = _dig(document, "metadata", "name")
        title = f"document {index}" + (f" ({kind} {name})" if kind and name else "")
        if kind not in ("Model", "Fleet"):
            problems.append(f"{title}: kind: {kind!r} is not known; write Model or Fleet")
            continue
        if document.get("apiVersion") is None:
            problems.append(f"{title}: apiVersion: is missing; write {API_VERSION}")
            continue
        try:
            if kind == "Model":
                models.append(Model.model_validate(document))
            elif fleet is not None:
                problems.append(f"{title}: kind: a second Fleet; declare one")
            else:
                fleet = Fleet.model_validate(document)
        except ValidationError as error:
            problems += [f"{title}: {line}" for line in explain_validation(error)]
    names = [m.name for m in models]
    problems += [
        f"Model {n}: metadata.name: declared twice; names are unique" for n in sorted(set(names)) if names.count(n) > 1
    ]
    if problems:
        raise SpecError("\n".join(problems))
    return Documents(tuple(models), fleet)


_MESSAGES: Final[Mapping[str, str]] = {
    "extra_forbidden": "is not a field here; remove it or check its spelling",
    "missing": "is missing; give it a value",
}


def explain_validation(error: ValidationError) -> list[str]:
    """One line per problem: path of the field, what is wrong with which value."""
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems:
        depth = len(problem["loc"])
        if problem["type"] == "too_short" and any(p["loc"][:depth] == problem["loc"] != p["loc"] for p in problems):
            # Its items are there, and wrong.
            continue
        path = ""
        for part in problem["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
        message = _MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        if problem["type"] not in ("extra_forbidden", "missing", "value_error"):
            message = f"{value!r}: {message[:1].lower()}{message[1:]}"
        lines.append(f"{path.lstrip('.') or '(document)'}: {message}")
    return lines


def _dig(document: object, *keys: str) -> Any:
    for key in keys:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document

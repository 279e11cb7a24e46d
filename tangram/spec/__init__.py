"""What operators declare: `Model`, `Fleet` and `Tenant`, one schema for YAML files, REST and Kubernetes.

Field names are camelCase on the wire (as in Kubernetes) and snake_case in Python. Quantities are Kubernetes quantities
on the wire; in Python they are integers: MiB for memory, thousandths of a core for CPU. Unknown fields are errors.

`load_documents` reads a YAML file, `parse_documents` takes what a REST client sent. Both raise `SpecError`, whose
text names the document, the path of the field, the value and the mend, and both take all or nothing.
"""

from tangram.spec.base import API_VERSION, Metadata, Name, NonNegative, Percent, Positive, SpecError
from tangram.spec.documents import Documents, clashes, explain_validation, load_documents, parse_documents, read_yaml
from tangram.spec.fleet import DeviceSpec, Fleet, FleetSpec, GatewaySpec, NodeSpec, PrometheusSpec, TotalQueue
from tangram.spec.model import Model, ModelSpec
from tangram.spec.quantity import MiB, MilliCPU, parse_quantity
from tangram.spec.rollout import CanaryStep, Rollout
from tangram.spec.runtime import EnvVar, Protocol, Readiness, ResourceList, Resources, Runtime, RuntimeKind
from tangram.spec.scaling import (
    MAX_REPLICAS,
    Behavior,
    HPAPolicy,
    Metric,
    MetricType,
    Objective,
    PolicyType,
    Scaling,
    ScalingMode,
    ScalingRules,
    Schedule,
    SelectPolicy,
    TargetType,
)
from tangram.spec.slices import DeviceSelector, Mechanism, SliceMemory, SliceSpec
from tangram.spec.tenant import KeyHash, RequestLimits, Tenant, TenantSpec
from tangram.spec.traffic import Alias, Ejection, Health, Hedge, Mirror, Queue, Retry, SplitTarget, Sticky, Traffic

__all__ = [
    "API_VERSION",
    "MAX_REPLICAS",
    "Alias",
    "Behavior",
    "CanaryStep",
    "DeviceSelector",
    "DeviceSpec",
    "Documents",
    "Ejection",
    "EnvVar",
    "Fleet",
    "FleetSpec",
    "GatewaySpec",
    "HPAPolicy",
    "Health",
    "Hedge",
    "KeyHash",
    "Mechanism",
    "Metadata",
    "Metric",
    "MetricType",
    "MiB",
    "MilliCPU",
    "Mirror",
    "Model",
    "ModelSpec",
    "Name",
    "NodeSpec",
    "NonNegative",
    "Objective",
    "Percent",
    "PolicyType",
    "Positive",
    "PrometheusSpec",
    "Protocol",
    "Queue",
    "Readiness",
    "RequestLimits",
    "ResourceList",
    "Resources",
    "Retry",
    "Rollout",
    "Runtime",
    "RuntimeKind",
    "Scaling",
    "ScalingMode",
    "ScalingRules",
    "Schedule",
    "SelectPolicy",
    "SliceMemory",
    "SliceSpec",
    "SpecError",
    "SplitTarget",
    "Sticky",
    "TargetType",
    "Tenant",
    "TenantSpec",
    "TotalQueue",
    "Traffic",
    "clashes",
    "explain_validation",
    "load_documents",
    "parse_documents",
    "parse_quantity",
    "read_yaml",
]

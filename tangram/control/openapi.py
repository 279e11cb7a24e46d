"""The admin API's operations as one table: the routes are made of it, and so is the OpenAPI 3.1 document.

A parameter checks its own text (`Parameter.read`), so that what the document promises is what a request is held to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from tangram.control.views import (
    ApplyRequest,
    ApplyView,
    DecisionView,
    DescribeView,
    DeviceView,
    ErrorView,
    EventView,
    ExplainView,
    ModelView,
    ReplicaView,
    ScaleRequest,
    StatusView,
)
from tangram.spec import Fleet, Model

API_PREFIX: Final = "/api/v1alpha1"

#: DNS-1123 label: what names of models and replicas look like.
NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_NAME: Final = re.compile(NAME_PATTERN.removesuffix("$"))


class BadParameter(ValueError):
    """A parameter's text is not what it should be; names the parameter, the value and the mend."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter."""

    name: str
    kind: Literal["name", "integer", "boolean"]
    text: str
    default: str | int | bool | None = None
    minimum: int = 0
    maximum: int = 0

    def read(self, given: Sequence[str]) -> str | int | bool | None:
        """The value of the texts given for this parameter; BadParameter when they are not one good value."""
        if not given:
            return self.default
        if len(given) > 1:
            raise BadParameter(f"{self.name}: given {len(given)} times; give it once")
        value = given[0]
        if self.kind == "name":
            if _NAME.fullmatch(value):
                return value
            raise BadParameter(f"{self.name}: {value!r} is not a name; names are lower-case letters, digits and -")
        if self.kind == "boolean":
            if value in ("true", "false"):
                return value == "true"
            raise BadParameter(f"{self.name}: {value!r} is not a boolean; write true or false")
        if re.fullmatch(r"[0-9]{1,9}", value) and self.minimum <= int(value) <= self.maximum:
            return int(value)
        raise BadParameter(f"{self.name}: {value!r} is not a whole number from {self.minimum} to {self.maximum}")

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        if self.kind == "name":
            return {"type": "string", "pattern": NAME_PATTERN}
        if self.kind == "boolean":
            return {"type": "boolean", "default": self.default}
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum, "default": self.default}


def is_name(text: str) -> bool:
    """Whether a model or replica could be called so."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing the API does. A tuple of one view as `answer` stands for {"items": [...]} of it."""

    id: str
    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    summary: str
    answer: type[BaseModel] | tuple[type[BaseModel]] | str | None = None
    """A view, a list of them, a media type of text, or None for no content."""
    query: tuple[Parameter, ...] = ()
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    open: bool = False
    """Answers without a token."""

    @property
    def tag(self) -> str:
        """The noun it is about."""
        return "health" if self.open else self.path.removeprefix(API_PREFIX).split("/")[1].partition(".")[0]


_OF_MODEL: Final = Parameter("model", "name", "Only what concerns this model.")
_LIMIT: Final = Parameter("limit", "integer", "How many at most, newest first.", default=50, minimum=1, maximum=1000)
_TAIL: Final = Parameter(
    "tail", "integer", "How many of the last lines to begin with.", default=200, minimum=0, maximum=100_000
)
_FOLLOW: Final = Parameter("follow", "boolean", "Go on with new lines until the replica is gone.", default=False)

OPERATIONS: Final[Sequence[Operation]] = (
    Operation("getStatus", "GET", f"{API_PREFIX}/status", "The installation as a whole", StatusView),
    Operation("listModels", "GET", f"{API_PREFIX}/models", "All models, by name", (ModelView,)),
    Operation("getModel", "GET", f"{API_PREFIX}/models/{{name}}", "One model", ModelView, errors=(404,)),
    Operation(
        "deleteModel",
        "DELETE",
        f"{API_PREFIX}/models/{{name}}",
        "Remove a model; its replicas are drained and stopped",
        errors=(404,),
    ),
    Operation(
        "describeModel",
        "GET",
        f"{API_PREFIX}/models/{{name}}/describe",
        "A model with its spec, replicas, events and decisions",
        DescribeView,
        errors=(404,),
    ),
    Operation(
        "explainModel",
        "GET",
        f"{API_PREFIX}/models/{{name}}/explain",
        "Why this many replicas, and why there",
        ExplainView,
        errors=(404,),
    ),
    Operation(
        "getModelSpec",
        "GET",
        f"{API_PREFIX}/models/{{name}}/spec",
        "The Model document in force",
        Model,
        errors=(404,),
    ),
    Operation(
        "scaleModel",
        "PATCH",
        f"{API_PREFIX}/models/{{name}}/scale",
        "Change scaling fields of a model; absent fields stay",
        ModelView,
        body=ScaleRequest,
        errors=(404, 413, 415, 422),
    ),
    Operation(
        "apply",
        "POST",
        f"{API_PREFIX}/apply",
        "Take Model and Fleet documents, all or none",
        ApplyView,
        body=ApplyRequest,
        errors=(413, 415, 422),
    ),
    Operation(
        "listReplicas",
        "GET",
        f"{API_PREFIX}/replicas",
        "Replicas, by name",
        (ReplicaView,),
        (_OF_MODEL,),
        errors=(404,),
    ),
    Operation(
        "getReplicaLogs",
        "GET",
        f"{API_PREFIX}/replicas/{{name}}/logs",
        "What a replica wrote, as plain text",
        "text/plain",
        (_TAIL, _FOLLOW),
        errors=(404,),
    ),
    Operation("listDevices", "GET", f"{API_PREFIX}/devices", "Devices, by id", (DeviceView,)),
    Operation(
        "listDecisions",
        "GET",
        f"{API_PREFIX}/decisions",
        "What the loop decided, newest first",
        (DecisionView,),
        (_OF_MODEL, _LIMIT),
        errors=(404,),
    ),
    Operation(
        "listEvents",
        "GET",
        f"{API_PREFIX}/events",
        "What happened to models and replicas, newest first",
        (EventView,),
        (_OF_MODEL, _LIMIT),
        errors=(404,),
    ),
    Operation("getOpenAPI", "GET", "/openapi.json", "This document", "application/json"),
    Operation("getHealth", "GET", "/healthz", "Answers while the controller lives", "text/plain", open=True),
    Operation(
        "getReadiness",
        "GET",
        "/readyz",
        "Answers 200 once the controller has found all its replicas",
        "text/plain",
        errors=(503,),
        open=True,
    ),
    Operation(
        "getMetrics",
        "GET",
        "/metrics",
        "Controller and gateway workers in Prometheus' text format; no token wanted from loopback",
        "text/plain",
    ),
)

_Mode = Literal["validation", "serialization"]
_SHOWN: Final = "serialization"
_TAKEN: Final = "validation"
_ERRORS: Final = {
    400: "The request is malformed; the text names the field, the value and the mend",
    401: "No token, or not the right one",
    403: "Host is not an address of this API",
    404: "No such model or replica",
    413: "The body is too large",
    415: "The body is not application/json",
    422: "What was sent cannot be accepted; nothing was changed; details has one line a problem",
    500: "The controller failed; its log says how",
    503: "Not yet, or the change cannot be recorded; nothing was changed",
}


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    from pydantic.json_schema import models_json_schema

    wanted: set[tuple[type[BaseModel], _Mode]] = {(ErrorView, _SHOWN), (Model, _TAKEN), (Fleet, _TAKEN)}
    wanted |= {(view, _SHOWN) for o in OPERATIONS if (view := _single(o.answer))}
    wanted |= {(o.body, _TAKEN) for o in OPERATIONS if o.body}
    refs, schemas = models_json_schema(
        sorted(wanted, key=lambda pair: (pair[0].__name__, pair[1])), ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        described = _describe(operation, refs)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tangram admin API",
            "version": version,
            "description": (
                "Memory is in MiB, compute and CPU in percent, times are Unix seconds, rates are requests per second. "
                "Every answer of 400 and above is an ErrorView."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(o.tag for o in OPERATIONS)],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The content of admin.token in the state directory",
                }
            },
            "schemas": schemas["$defs"],
            "responses": {
                str(status): {"description": text, "content": {"application/json": {"schema": _ref("ErrorView")}}}
                for status, text in _ERRORS.items()
            },
        },
    }


def _describe(operation: Operation, refs: Any) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    answer = operation.answer
    if answer is None:
        answers["204"] = {"description": "Done"}
    elif isinstance(answer, str):
        text = {"type": "object" if answer == "application/json" else "string"}
        answers["200"] = {"description": operation.summary, "content": {answer: {"schema": text}}}
    else:
        view = _single(answer)
        schema = refs[view, _SHOWN]
        if isinstance(answer, tuple):
            schema = {
                "type": "object",
                "properties": {"items": {"type": "array", "items": schema}},
                "required": ["items"],
                "additionalProperties": False,
            }
        answers["200"] = {"description": operation.summary, "content": {"application/json": {"schema": schema}}}
    common = (400, 403, 500) if operation.open else (400, 401, 403, 500)
    if operation.method != "GET":
        common = (*common, 503)
    for status in sorted({*common, *operation.errors}):
        answers[str(status)] = {"$ref": f"#/components/responses/{status}"}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": _parameters(operation),
        "responses": answers,
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": refs[operation.body, _TAKEN]}},
        }
    if operation.open:
        described["security"] = []
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    noun = "model" if "/models/" in operation.path else "replica"
    named: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"Name of the {noun}",
            "schema": {"type": "string", "pattern": NAME_PATTERN},
        }
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    asked: list[dict[str, Any]] = [
        {"name": p.name, "in": "query", "required": False, "description": p.text, "schema": p.schema()}
        for p in operation.query
    ]
    return named + asked


def _single(answer: type[BaseModel] | tuple[type[BaseModel]] | str | None) -> type[BaseModel] | None:
    if isinstance(answer, tuple):
        return answer[0]
    return answer if isinstance(answer, type) else None


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}

from __future__ import annotations

import re
from typing import Any

import aiohttp
import pytest
from pydantic import BaseModel

from tangram.control.api import make_app
from tangram.control.openapi import OPERATIONS, BadParameter, Parameter, document


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return document("0.1.0")


def references(node: object) -> set[str]:
    if isinstance(node, dict):
        return (
            {node["$ref"]} if isinstance(node.get("$ref"), str) else set().union(*map(references, node.values()), set())
        )
    return set().union(*map(references, node), set()) if isinstance(node, list) else set()


def test_every_route_is_described_and_every_description_routed(spec: dict[str, Any], facade: Any) -> None:
    app = make_app(facade, "token")
    routed = {(r.method.lower(), r.resource.canonical) for r in app.router.routes() if r.resource}
    described = {(method, path) for path, item in spec["paths"].items() for method in item}
    assert routed == described


def test_every_reference_is_defined(spec: dict[str, Any]) -> None:
    for reference in references(spec):
        node = spec
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_it_is_well_formed_openapi(spec: dict[str, Any]) -> None:
    assert spec["openapi"].startswith("3.1.")
    ids = [o["operationId"] for item in spec["paths"].values() for o in item.values()]
    assert len(set(ids)) == len(ids) == len(OPERATIONS)
    for path, item in spec["paths"].items():
        for operation in item.values():
            given = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert given == set(re.findall(r"\{(\w+)\}", path))
            assert all(p["required"] for p in operation["parameters"] if p["in"] == "path")
            assert {s[0] for s in operation["responses"]} >= {"2", "4", "5"}
            assert all("description" in r or "$ref" in r for r in operation["responses"].values())


def test_everything_but_probes_wants_the_token(spec: dict[str, Any]) -> None:
    assert spec["security"] == [{"token": []}]
    open_ = {path for path, item in spec["paths"].items() for o in item.values() if o.get("security") == []}
    assert open_ == {"/healthz", "/readyz"}


def test_the_views_are_told_in_camel_case(spec: dict[str, Any]) -> None:
    schemas = spec["components"]["schemas"]
    assert {"targetQPS", "minReplicas", "p99Ms"} <= set(schemas["ModelView"]["properties"])
    assert schemas["ApplyRequest"]["required"] == ["documents"]


async def test_answers_have_the_fields_that_are_described(client: aiohttp.ClientSession) -> None:
    async with client.get("/openapi.json") as response:
        spec = await response.json()
    for operation in OPERATIONS:
        if operation.method != "GET" or isinstance(operation.answer, str):
            continue
        path = operation.path.replace("{name}", "digits")
        schema = spec["paths"][operation.path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        async with client.get(path) as response:
            answer = await response.json()
        if isinstance(operation.answer, tuple):
            assert set(answer) == {"items"}
            schema = schema["properties"]["items"]["items"]
            answers = answer["items"]
        else:
            answers = [answer]
        view = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        for one in answers:
            assert set(one) == set(view["properties"]), operation.id
            assert set(view.get("required", ())) <= set(one), operation.id


def test_a_parameter_reads_what_it_promises() -> None:
    limit = Parameter("limit", "integer", "", default=50, minimum=1, maximum=1000)
    assert [limit.read([]), limit.read(["1000"])] == [50, 1000]
    for bad in ("1001", "+1", "1.0", "", "٣", "1" * 400):
        with pytest.raises(BadParameter, match=r"limit: .* is not a whole number from 1 to 1000"):
            limit.read([bad])
    assert isinstance(OPERATIONS[0].answer, type)
    assert issubclass(OPERATIONS[0].answer, BaseModel)

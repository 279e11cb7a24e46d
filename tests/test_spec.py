"""What operators may declare, and what they are told when they may not."""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tangram.spec import (
    API_VERSION,
    Documents,
    Fleet,
    Model,
    SpecError,
    Traffic,
    explain_validation,
    load_documents,
    parse_documents,
    parse_quantity,
    read_yaml,
)


def model_document(name: str = "digits") -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {"runtime": {"model": "digits/model.py"}, "slice": {"memory": {"request": "256Mi"}}},
    }


def fleet_document() -> dict[str, Any]:
    device = {"name": "gpu-0", "memory": "8Gi", "cores": 1}
    return {
        "apiVersion": API_VERSION,
        "kind": "Fleet",
        "metadata": {"name": "desk"},
        "spec": {"nodes": [{"name": "node-a", "devices": [device]}]},
    }


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one field set; numbers in the path index lists."""
    document = copy.deepcopy(document)
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return document


def model(path: str | None = None, value: object = None) -> Model:
    document = model_document() if path is None else changed(model_document(), path, value)
    return parse_documents([document]).models[0]


def refusal(*documents: object) -> str:
    with pytest.raises(SpecError) as caught:
        parse_documents(documents)
    return str(caught.value)


# --- quantities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("1500m", "1.5"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("1e3", 1000),
        ("1E3", 1000),
        ("2k", 2000),
        ("2Ki", 2048),
        ("1E", 10**18),
        ("1.5Gi", 1610612736),
        (" 3Mi ", 3 * 2**20),
        (7, 7),
        (0.25, "0.25"),
    ],
)
def test_quantities_mean_what_kubernetes_means(text: str | float, number: int | str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "1gi", "1mi", "1KI", "0x10", "1,5Gi", "NaN", "inf", "1e", "--1"])
def test_what_is_no_quantity_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity; write for example 512Mi"):
        parse_quantity(text)


def test_negative_and_boolean_quantities_are_refused() -> None:
    with pytest.raises(ValueError, match="'-1Gi' is negative"):
        parse_quantity("-1Gi")
    with pytest.raises(ValueError, match="not a boolean"):
        parse_quantity(True)


@given(st.integers(0, 2**63))
def test_bytes_are_rounded_up_to_whole_mib(count: int) -> None:
    spec = model("spec.resources", {"requests": {"memory": count}}).spec
    mib = spec.resources.requests.memory
    assert mib * 2**20 >= count > (mib - 1) * 2**20


def test_memory_is_mib_and_cpu_is_thousandths_of_a_core() -> None:
    spec = model("spec.resources", {"requests": {"cpu": "1.0005", "memory": "1G"}}).spec
    assert spec.resources.requests.cpu == 1001
    assert spec.resources.requests.memory == 954


# --- what is accepted ----------------------------------------------------------------------------------------------


def test_the_least_model_has_sensible_defaults() -> None:
    spec = model().spec
    assert (spec.scaling.min_replicas, spec.scaling.max_replicas, spec.scaling.mode) == (1, 1, "honour")
    assert spec.slice.compute == 0
    assert spec.slice.memory.effective_limit == spec.slice.memory.request == 256
    assert spec.traffic.queue.max_memory == 64


def test_an_alias_is_any_name_without_spaces() -> None:
    assert Traffic(aliases=("meta-llama/Llama-3.1-8B", "my_model")).aliases[1] == "my_model"
    for wrong in ("", "two words", "line\n", "ä", "x" * 201):
        with pytest.raises(ValueError, match="aliases"):
            Traffic(aliases=(wrong,))


def test_a_slice_may_grow_to_its_limit() -> None:
    assert model("spec.slice.memory", {"request": "1Gi", "limit": "2Gi"}).spec.slice.memory.effective_limit == 2048


def test_the_qps_target_is_spelled_with_capitals() -> None:
    assert model("spec.scaling", {"targetQPS": 20}).spec.scaling.target_qps == 20


def test_specs_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        model().spec.scaling.max_replicas = 9  # type: ignore[misc]


# --- what is refused -----------------------------------------------------------------------------------------------

PROBLEMS = [
    ("spec.slice.memory.request", "lots", "spec.slice.memory.request: 'lots' is not a quantity; write for example"),
    ("spec.slice.memory.request", 0, "spec.slice.memory.request: 0: "),
    ("spec.slice.memory.limit", "10Mi", "limit 10Mi is less than request 256Mi; raise the limit or lower the request"),
    ("spec.slice.compute", 101, "spec.slice.compute: 101: input should be less than or equal to 100"),
    ("spec.slice.mechanism", "cuda", "spec.slice.mechanism: 'cuda': input should be 'virtual'"),
    ("spec.scaling.minReplicas", 3, "minReplicas 3 is greater than maxReplicas 1; lower minReplicas or raise"),
    ("spec.scaling.targetQps", 3, "spec.scaling.targetQps: is not a field here; remove it or check its spelling"),
    ("spec.scaling.targetQPS", 0, "spec.scaling.targetQPS: 0: input should be greater than 0"),
    ("spec.scaling.targetQPS", float("nan"), "spec.scaling.targetQPS: nan: "),
    ("spec.scaling.metrics", [{"type": "cpu", "target": 300}], "spec.scaling.metrics[0]: target 300 is more than 100"),
    ("spec.scaling.metrics", [{"type": "cpu", "target": 50}] * 2, "metrics names a type twice; keep one entry"),
    ("spec.runtime.command", "python server.py", "spec.runtime.command: is a string; write a list of arguments"),
    ("spec.runtime.model", "", "spec.runtime: model is missing; an embedded runtime names the Python file"),
    ("spec.runtime.kind", "command", "spec.runtime: command is missing; a command runtime gives the argv"),
    ("spec.runtime.port", 70000, "spec.runtime.port: 70000: input should be less than or equal to 65535"),
    ("spec.runtime.env", [{"name": "A"}, {"name": "A"}], "env names a variable twice; keep one entry"),
    ("spec.trafic", {}, "spec.trafic: is not a field here"),
    ("metadata.name", "Bad_Name", "metadata.name: 'Bad_Name': "),
    ("metadata.name", "x" * 53, "at most 52 characters"),
    ("apiVersion", "tangram.dev/v9", "apiVersion: 'tangram.dev/v9': input should be 'tangram.dev/v1alpha1'"),
]


@pytest.mark.parametrize(("path", "value", "told"), PROBLEMS, ids=[f"{p}={v}"[:60] for p, v, _ in PROBLEMS])
def test_a_bad_field_is_named_with_its_value_and_mend(path: str, value: object, told: str) -> None:
    text = refusal(changed(model_document(), path, value))
    assert told in text
    assert "\n" not in text


def test_a_missing_field_is_named() -> None:
    document = model_document()
    del document["spec"]["slice"]
    assert refusal(document) == "document 1 (Model digits): spec.slice: is missing; give it a value"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.nodes.0.devices", [], "spec.nodes[0].devices: []: "),
        ("spec.nodes.0.devices.0.reserve", "8Gi", "reserve 8Gi leaves nothing of memory 8Gi; lower it"),
        ("spec.nodes.0.devices.0.cores", 0, "spec.nodes[0].devices[0].cores: 0: "),
        ("spec.nodes.0.gpus", 2, "spec.nodes[0].gpus: is not a field here"),
    ],
)
def test_a_bad_device_is_named(path: str, value: object, told: str) -> None:
    assert told in refusal(changed(fleet_document(), path, value))


def test_names_of_nodes_and_devices_are_unique() -> None:
    node = fleet_document()["spec"]["nodes"][0]
    assert "nodes names 'node-a' twice" in refusal(changed(fleet_document(), "spec.nodes", [node, node]))
    devices = node["devices"] * 2
    assert "devices names 'gpu-0' twice" in refusal(changed(fleet_document(), "spec.nodes.0.devices", devices))


def test_every_problem_of_every_document_is_told_at_once() -> None:
    first = changed(changed(model_document("a"), "spec.slice.compute", 200), "spec.typo", 1)
    second = changed(model_document("b"), "spec.scaling.maxReplicas", 0)
    lines = refusal(first, second).splitlines()
    assert sorted(line.split(":")[0] for line in lines) == [
        "document 1 (Model a)",
        "document 1 (Model a)",
        "document 2 (Model b)",
    ]


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        (["just text"], "document 1: kind: None is not known; write Model, Fleet or Tenant"),
        ([{"kind": "Deployment"}], "document 1: kind: 'Deployment' is not known; write Model, Fleet or Tenant"),
        ([{"kind": "Model"}], "document 1: apiVersion: is missing; write tangram.dev/v1alpha1"),
        ([fleet_document(), fleet_document()], "document 2 (Fleet desk): kind: a second Fleet; declare one"),
        ([model_document(), model_document()], "Model digits: metadata.name: declared twice; names are unique"),
    ],
)
def test_documents_that_do_not_belong_are_refused(documents: list[object], told: str) -> None:
    assert refusal(*documents) == told


def test_a_problem_with_a_whole_document_still_has_a_place() -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(7)
    assert explain_validation(caught.value)[0].startswith("(document): 7: ")


# --- files ---------------------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_may_hold_a_fleet_and_models(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump_all([fleet_document(), None, model_document("a"), model_document("b")]))
    documents = load_documents(path)
    assert [m.name for m in documents.models] == ["a", "b"]
    assert documents.fleet is not None
    assert documents.fleet.spec.nodes[0].devices[0].memory == 8192


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "fleets").mkdir()
    document = changed(model_document(), "spec.runtime.workingDir", "../data")
    runtime = load_documents(written(tmp_path / "fleets", yaml.safe_dump(document))).models[0].spec.runtime
    assert runtime.model == str(tmp_path / "fleets/digits/model.py")
    assert Path(str(runtime.working_dir)).resolve() == tmp_path / "data"


def test_an_absolute_path_stays_and_the_folder_of_the_file_is_where_a_replica_runs(tmp_path: Path) -> None:
    document = changed(model_document(), "spec.runtime.model", "/srv/model.py")
    runtime = load_documents(written(tmp_path, yaml.safe_dump(document))).models[0].spec.runtime
    assert (runtime.model, runtime.working_dir) == ("/srv/model.py", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no documents; declare at least one Model"),
        ("a: 1\nb: [", "line 2, column 5: "),
        ("kind: Model\nkind: Fleet\n", "line 2, column 1: key 'kind' is given twice; keep one"),
        ("kind: Modle\n", "document 1: kind: 'Modle' is not known"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load_documents(path)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read: No such file or directory"):
        read_yaml(tmp_path / "none.yaml")
    binary = tmp_path / "weights.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"weights\.yaml: cannot be read: it is not UTF-8 text"):
        read_yaml(binary)


def test_yaml_anchors_and_merges_are_allowed(tmp_path: Path) -> None:
    text = "x: &base {a: 1, b: 2}\ny: {<<: *base, b: 3}\n"
    assert read_yaml(written(tmp_path, text)) == [{"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}]


# --- round trip ----------------------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
labels = st.dictionaries(names, names, max_size=3)
mib = st.integers(1, 2**20)
finite = st.floats(0.001, 1e6, allow_nan=False)


@st.composite
def scalings(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(0, 5))
    metrics = draw(st.lists(st.sampled_from(["cpu", "memory", "deviceMemory", "concurrency"]), unique=True))
    rules = {
        "stabilizationWindowSeconds": draw(st.none() | st.integers(0, 3600)),
        "selectPolicy": draw(st.sampled_from(["Max", "Min", "Disabled"])),
        "policies": draw(st.none() | st.just([{"type": "Pods", "value": 4, "periodSeconds": 15}])),
    }
    scaling: dict[str, Any] = {
        "minReplicas": least,
        "maxReplicas": max(1, least + draw(st.integers(0, 5))),
        "mode": draw(st.sampled_from(["honour", "learn"])),
        "metrics": [{"type": m, "target": draw(st.floats(1, 100))} for m in metrics],
        "behavior": {draw(st.sampled_from(["scaleUp", "scaleDown"])): rules},
        "idleSeconds": draw(finite),
    }
    if draw(st.booleans()):
        scaling["targetQPS"] = draw(finite)
    return scaling


@st.composite
def model_documents(draw: st.DrawFn) -> dict[str, Any]:
    request = draw(mib)
    runtime: dict[str, Any] = {"model": "m.py"} if draw(st.booleans()) else {"kind": "command", "command": ["serve"]}
    runtime["env"] = [{"name": f"V{i}", "value": v} for i, v in enumerate(draw(st.lists(st.text(), max_size=2)))]
    return {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "metadata": {"name": draw(names), "labels": draw(labels)},
        "spec": {
            "project": draw(names),
            "priority": draw(st.integers(-1000, 1000)),
            "runtime": runtime,
            "resources": {"requests": {"cpu": f"{draw(st.integers(0, 10**6))}m", "memory": f"{draw(mib)}Ki"}},
            "slice": {
                "memory": {"request": f"{request}Mi", "limit": f"{request + draw(mib)}Mi"},
                "compute": draw(st.integers(0, 100)),
                "deviceSelector": {"matchLabels": draw(labels)},
            },
            "scaling": draw(scalings()),
            "traffic": {"queue": {"maxMemory": f"{draw(mib)}Mi"}, "timeoutSeconds": draw(finite)},
        },
    }


@given(model_documents())
def test_a_model_written_out_reads_back_the_same(document: dict[str, Any]) -> None:
    first = parse_documents([document]).models[0]
    wire = json.loads(first.model_dump_json(by_alias=True))
    second = parse_documents([wire]).models[0]
    assert second == first
    assert second.revision == first.revision
    assert parse_documents([yaml.safe_load(yaml.safe_dump(wire))]).models[0] == first


@given(st.lists(mib, min_size=1, max_size=4), st.none() | st.integers(0, 10**6))
def test_a_fleet_written_out_reads_back_the_same(memories: list[int], cpu: int | None) -> None:
    document = fleet_document()
    node = document["spec"]["nodes"][0]
    node["devices"] = [{"name": f"gpu-{i}", "memory": f"{m}Mi", "cores": "500m"} for i, m in enumerate(memories)]
    node["cpu"] = None if cpu is None else f"{cpu}m"
    fleet = parse_documents([document]).fleet
    assert fleet is not None
    assert parse_documents([json.loads(fleet.model_dump_json(by_alias=True))]) == Documents((), fleet)


# --- revision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.runtime.model", "digits/other.py"),
        ("spec.runtime.env", [{"name": "THREADS", "value": "2"}]),
        ("spec.slice.memory.request", "300Mi"),
        ("spec.slice.compute", 40),
        ("spec.resources", {"requests": {"cpu": "500m"}}),
    ],
)
def test_what_shapes_the_process_makes_a_new_revision(path: str, value: object) -> None:
    assert model(path, value).revision != model().revision


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.scaling", {"maxReplicas": 9, "targetQPS": 3}),
        ("spec.traffic.timeoutSeconds", 5),
        ("spec.priority", 7),
        ("spec.runtime.readiness", {"periodSeconds": 0.2}),
        ("spec.runtime.progressDeadlineSeconds", 9),
        ("spec.runtime.terminationGracePeriodSeconds", 1),
        ("metadata.labels", {"team": "vision"}),
        ("metadata.name", "renamed"),
    ],
)
def test_what_does_not_shape_the_process_keeps_the_revision(path: str, value: object) -> None:
    assert model(path, value).revision == model().revision


def test_another_spelling_of_a_quantity_is_the_same_revision() -> None:
    assert model("spec.slice.memory.request", 256 * 2**20).revision == model().revision


# --- schema --------------------------------------------------------------------------------------------------------


def walk(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every (path, schema) below one schema, references followed."""
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in schema.items() if k != "$ref"}}
    found = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        found += walk(child, definitions, f"{path}.{name}")
    if isinstance(items := schema.get("items"), dict):
        found += walk(items, definitions, f"{path}[]")
    for child in schema.get("anyOf", []):
        found += walk(child, definitions, path)
    return found


@pytest.mark.parametrize("kind", [Model, Fleet])
def test_the_json_schema_is_structural_enough_for_a_custom_resource(kind: type[Model] | type[Fleet]) -> None:
    schema = kind.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    for path, node in walk(schema, definitions):
        known = "type" in node or "enum" in node or "const" in node or node.get("x-kubernetes-int-or-string")
        assert known or "anyOf" in node, f"{path} says nothing of its type"
        if node.get("properties"):
            assert node["additionalProperties"] is False, f"{path} takes unknown fields"
        assert not {"oneOf", "allOf", "not", "patternProperties", "prefixItems"} & node.keys(), path
        for name in node.get("properties", {}):
            assert "_" not in name, f"{path}.{name} is not camelCase"


def test_quantities_in_the_schema_are_integers_or_strings() -> None:
    schema = Model.model_json_schema(by_alias=True)
    found = [n for p, n in walk(schema, schema["$defs"]) if p == ".spec.slice.memory.request"]
    assert any(node.get("x-kubernetes-int-or-string") for node in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 5000, "nested too deeply"),
        ("? [1, 2]\n: 3\n", "line 1, column 3: a key is not text"),
        ("a: " + "9" * 5000, "holds a value that cannot be read"),
        ("a: 2020-13-45", "holds a value that cannot be read"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: &a {b: *a}", "unconstructable recursive node"),
    ],
)
def test_yaml_that_is_made_to_hurt_gets_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_documents(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


# --- traffic, rollouts, tenants ---


def with_spec(**parts: Any) -> dict[str, Any]:
    document = model_document()
    document["spec"].update(parts)
    return document


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (
            with_spec(traffic={"split": [{"model": "a", "percent": 60}, {"model": "b", "percent": 50}]}),
            "spec.traffic: split adds up to 110 percent; give at most 100",
        ),
        (
            with_spec(traffic={"split": [{"model": "a", "percent": 1}, {"model": "a", "percent": 2}]}),
            "spec.traffic: split names 'a' twice",
        ),
        (with_spec(traffic={"sticky": {"header": "X Session"}}), "spec.traffic.sticky.header: 'X Session'"),
        (
            with_spec(traffic={"health": {"ejection": {"slowFactor": 0.5}}}),
            "spec.traffic.health.ejection: slowFactor 0.5 would eject the usual",
        ),
        (
            with_spec(traffic={"timeoutSeconds": 5, "hedge": {"afterSeconds": 5}}),
            "spec.traffic: hedge.afterSeconds 5 is not less than timeoutSeconds 5",
        ),
        (
            with_spec(traffic={"hedge": {"afterSeconds": 0.2, "afterPercentile": 90}}),
            "spec.traffic.hedge: afterSeconds 0.2 and afterPercentile 90 both say how slow; leave one out",
        ),
        (with_spec(traffic={"hedge": {"afterPercentile": 100}}), "spec.traffic.hedge.afterPercentile: 100"),
        (with_spec(traffic={"hedge": {"maxPercent": 0}}), "spec.traffic.hedge.maxPercent: 0"),
        (
            with_spec(rollout={"canary": [{"percent": 50}, {"percent": 10}]}),
            "spec.rollout: canary has percents [50, 10]; each step gives the new revision more",
        ),
        (with_spec(rollout={"canary": [{"percent": 100}]}), "spec.rollout.canary[0].percent: 100"),
    ],
)
def test_traffic_that_makes_no_sense(document: dict[str, Any], told: str) -> None:
    assert f"document 1 (Model digits): {told}" in refusal(document)


def tenant(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": "Tenant", "metadata": {"name": "acme"}, "spec": spec}


def test_tenants_are_documents_like_others() -> None:
    documents = parse_documents([tenant(limits={"requestsPerSecond": 5}, modelLimits={"digits": {"concurrency": 2}})])
    (one,) = documents.tenants
    assert one.spec.models is None
    assert one.spec.model_limits["digits"].concurrency == 2
    assert "Tenant acme: metadata.name: declared twice" in refusal(tenant(), tenant())


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"limits": {"burst": 5}}, "spec.limits: burst is given without requestsPerSecond"),
        ({"keys": [{"id": "x", "sha256": "0" * 64}]}, "spec.keys[0].id: 'x'"),
        ({"keys": [{"id": "0a0a0a0a", "sha256": "short"}]}, "spec.keys[0].sha256: 'short'"),
        ({"weight": 0}, "spec.weight: 0"),
    ],
)
def test_tenants_that_make_no_sense(spec: dict[str, Any], told: str) -> None:
    assert told in refusal(tenant(**spec))


def test_how_a_model_is_rolled_out_is_no_part_of_its_process() -> None:
    plain, careful = (parse_documents([d]).models[0] for d in (model_document(), with_spec(rollout={"minRequests": 9})))
    assert plain.revision == careful.revision


WINDOW = {"start": "0 8 * * mon-fri", "end": "0 18 * * mon-fri", "timeZone": "Europe/Berlin", "minReplicas": 2}


def test_a_window_of_time_may_bound_the_replicas() -> None:
    document = changed(model_document(), "spec.scaling", {"schedules": [WINDOW]})
    (window,) = Model.model_validate(document).spec.scaling.schedules
    assert (window.min_replicas, window.max_replicas, window.time_zone) == (2, None, "Europe/Berlin")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("start", "8 * * mon", "schedules[0].start: cron expression '8 * * mon' has 4 fields; give five"),
        ("end", "61 8 * * *", "schedules[0].end: cron field minute: '61' is not known; give 0 to 59"),
        ("end", "0 0 31 2 *", "schedules[0].end: cron expression '0 0 31 2 *' names a day that never comes"),
        ("timeZone", "Berlin", "schedules[0].timeZone: 'Berlin' is no time zone known here"),
        ("maxReplicas", 1, "schedules[0]: minReplicas 2 is greater than maxReplicas 1"),
        ("minReplicas", None, "schedules[0]: neither minReplicas nor maxReplicas is given"),
    ],
)
def test_a_window_that_cannot_be_is_refused(field: str, value: object, told: str) -> None:
    document = changed(model_document(), "spec.scaling", {"schedules": [{**WINDOW, field: value}]})
    with pytest.raises(SpecError) as refused:
        parse_documents([document])
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("slice_", "told"),
    [
        ({"compute": 30, "computeLimit": 20}, "slice: computeLimit 20 is less than compute 30"),
        ({"computeLimit": 20}, "slice: computeLimit is given without compute"),
        ({"compute": 30, "computeLimit": 60, "mechanism": "mps"}, "the mechanism mps cannot change the compute"),
        ({"compute": 30, "computeLimit": 160}, "slice.computeLimit: 160"),
    ],
)
def test_a_slice_that_cannot_grow_like_that_is_refused(slice_: dict[str, Any], told: str) -> None:
    document = changed(model_document(), "spec.slice", {"memory": {"request": "256Mi"}, **slice_})
    with pytest.raises(SpecError) as refused:
        parse_documents([document])
    assert told in str(refused.value)


def test_how_far_a_slice_may_grow_is_no_new_revision() -> None:
    document = changed(model_document(), "spec.slice.compute", 20)
    grown = Model.model_validate(changed(document, "spec.slice.computeLimit", 60))
    assert grown.spec.slice.effective_compute_limit == 60
    assert grown.revision == Model.model_validate(document).revision


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ([{"devices": ["gpu-0", "gpu-9"]}], "links names device 'gpu-9'; devices of the node are gpu-0"),
        ([{"devices": ["gpu-0", "gpu-0"]}], "devices names 'gpu-0' twice"),
        ([{"devices": ["gpu-0"]}], "links"),
    ],
)
def test_links_name_devices_of_their_node(links: list[dict[str, Any]], words: str) -> None:
    assert words in refusal(changed(fleet_document(), "spec.nodes.0.links", links))


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ({"type": "prometheus", "target": 4, "name": "waiting"}, "type prometheus needs name and query"),
        ({"type": "prometheus", "target": 4, "query": "up"}, "type prometheus needs name and query"),
        ({"type": "prometheus", "target": 4, "query": "up", "name": "qps"}, "'qps' is a signal of Tangram's own"),
        ({"type": "cpu", "target": 60, "query": "up"}, "name and query belong to type prometheus, not to cpu"),
    ],
)
def test_a_metric_that_cannot_be_asked_for_is_refused(metric: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_documents([changed(model_document(), "spec.scaling", {"metrics": [metric]})])
    assert "spec.scaling.metrics[0]: " in str(refused.value) and told in str(refused.value)


def test_several_queries_are_told_apart_by_name() -> None:
    query = {"type": "prometheus", "target": 400, "query": "up"}
    metrics = [{**query, "name": "a"}, {**query, "name": "b", "targetType": "Value"}]
    model = Model.model_validate(changed(model_document(), "spec.scaling", {"metrics": metrics}))
    assert [m.name for m in model.spec.scaling.metrics] == ["a", "b"]
    with pytest.raises(SpecError, match="metrics names a type twice"):
        parse_documents([changed(model_document(), "spec.scaling", {"metrics": [metrics[0], metrics[0]]})])


def test_where_prometheus_is_has_to_be_an_address(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.prometheus\.url: 'prometheus:9090'"):
        parse_documents([changed(fleet_document(), "spec.prometheus", {"url": "prometheus:9090"})])
    with pytest.raises(SpecError, match=r"'http://p/\?x=1' is no address; write http://"):
        parse_documents([changed(fleet_document(), "spec.prometheus", {"url": "http://p/?x=1"})])
    file = tmp_path / "fleet.yaml"
    given = {"url": "http://127.0.0.1:9090", "bearerTokenFile": "token"}
    file.write_text(yaml.safe_dump(changed(fleet_document(), "spec.prometheus", given)))
    fleet = load_documents(file).fleet
    assert fleet is not None and fleet.spec.prometheus is not None
    assert fleet.spec.prometheus.bearer_token_file == str(tmp_path / "token")


def test_a_replica_of_several_devices_takes_them_whole() -> None:
    wide = model("spec.slice.devices", 2)
    assert (wide.spec.slice.whole, wide.spec.slice.compute) == (True, 100)
    assert Model.model_validate(wide.model_dump(mode="json", by_alias=True)) == wide
    assert model("spec.slice", {"memory": {"request": "1Gi"}, "devices": 4, "compute": 100}).spec.slice.devices == 4
    assert (model().spec.slice.devices, model().spec.slice.whole) == (1, False)


def test_the_revision_of_a_model_of_one_device_is_what_it_was_before_there_were_several() -> None:
    assert model("spec.slice.devices", 1).revision == model().revision == "179ac95d"
    assert model("spec.slice.devices", 2).revision != model("spec.slice.devices", 3).revision != model().revision


@pytest.mark.parametrize(
    ("slice_", "told"),
    [
        ({"compute": 50}, "slice: compute 50: a replica of 2 devices takes them whole; leave compute out"),
        ({"compute": 0}, "slice: compute 0: a replica of 2 devices takes them whole"),
        ({"computeLimit": 100}, "computeLimit 100: a replica of 2 devices takes them whole and has nothing to grow to"),
        ({"mechanism": "mig"}, "mechanism mig: a replica of 2 devices takes them whole, and MIG gives parts"),
        ({"mechanism": "mps"}, "mechanism mps: a replica of 2 devices takes them whole, and MPS gives parts"),
        ({"memory": {"request": "1Gi", "limit": "2Gi"}}, "memory.limit 2Gi: a replica of 2 devices takes them whole"),
        ({"devices": 0}, "slice.devices: 0: input should be greater than or equal to 1"),
        ({"devices": "two"}, "slice.devices: 'two'"),
        ({"devices": 1.5}, "slice.devices: 1.5"),
    ],
)
def test_parts_of_several_devices_are_refused(slice_: dict[str, Any], told: str) -> None:
    document = changed(model_document(), "spec.slice", {"memory": {"request": "256Mi"}, "devices": 2, **slice_})
    text = refusal(document)
    assert told in text
    assert "\n" not in text


def board(*links: dict[str, Any]) -> dict[str, Any]:
    devices = [{"name": f"gpu-{i}", "memory": "8Gi", "cores": 1} for i in range(4)]
    return changed(changed(fleet_document(), "spec.nodes.0.devices", devices), "spec.nodes.0.links", list(links))


def test_devices_are_linked_by_nvlink_or_a_way_over_pcie() -> None:
    node = Fleet.model_validate(
        board(
            {"devices": ["gpu-0", "gpu-1"], "nvlinks": 4},
            {"devices": ["gpu-0", "gpu-2"]},
            {"devices": ["gpu-0", "gpu-1", "gpu-2"], "distance": "NODE"},
            {"devices": ["gpu-1", "gpu-2"], "distance": "PIX"},
        )
    ).spec.nodes[0]
    assert node.links_of("gpu-0") == {"gpu-1": 4, "gpu-2": 1}
    assert node.links_of("gpu-1") == {"gpu-0": 4}
    assert {n: d.value for n, d in node.distances_of("gpu-1").items()} == {"gpu-0": "NODE", "gpu-2": "PIX"}
    assert node.distances_of("gpu-3") == {}


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ({"distance": "NEAR"}, "links[0].distance: 'NEAR': input should be 'PIX', 'PXB', 'PHB', 'NODE' or 'SYS'"),
        ({"nvlinks": 0}, "links[0]: nvlinks 0 says nothing without a distance; give one, or leave the entry out"),
        ({"nvlinks": -1}, "links[0].nvlinks: -1"),
    ],
)
def test_a_link_that_says_nothing_is_refused(link: dict[str, Any], told: str) -> None:
    assert told in refusal(board({"devices": ["gpu-0", "gpu-1"], **link}))

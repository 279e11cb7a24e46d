"""What operators read is true: generated tables are fresh, links lead somewhere, commands exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import yaml

from tangram.spec import Rollout, Tenant, TenantSpec, Traffic

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_metrics", ROOT / "docs/generate_metrics.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_metrics_is_up_to_date(generator: ModuleType) -> None:
    written = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert written == generator.render(), "run python docs/generate_metrics.py"


def test_metrics_are_named_as_prometheus_wants(generator: ModuleType) -> None:
    rows = [*generator.gateway.metrics.METRICS, *generator.tangram.control.metrics.METRICS]
    names = [name for name, *_ in rows]
    assert len(set(names)) == len(names)
    for name, kind, labels, said in rows:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
        assert kind in ("counter", "gauge", "histogram", "info"), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(ms|milliseconds|mib|kib|percent)(_|$)", name), f"{name} is not in base units"
        assert not {"path", "key", "user", "tenant_key", "request_id", "client"} & set(labels), name
        assert said, f"{name} wants a help text"


def test_a_bar_in_a_help_text_does_not_break_the_table(generator: ModuleType) -> None:
    assert generator.table([("a_total", "counter", ["model"], "this|that")]).splitlines()[-1] == (
        "| `a_total` | counter | `model` | this\\|that |"
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"#]+)\"", text)
    for target in targets:
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_what_the_documents_show_of_specs_is_valid() -> None:
    text = (ROOT / "docs/traffic.md").read_text(encoding="utf-8")
    shown = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    assert len(shown) == 6
    for one in shown:
        if one.get("kind") == "Tenant":
            Tenant.model_validate(one)
        for part, schema in (("traffic", Traffic), ("rollout", Rollout), ("spec", TenantSpec)):
            if part in one:
                schema.model_validate(one[part])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"(?:`|^\s*)make ([a-z]+)", document.read_text(encoding="utf-8"), re.M))
    assert named <= targets


def test_the_picture_is_well_formed_and_says_what_it_shows() -> None:
    picture = ElementTree.parse(ROOT / "docs/loop.svg").getroot()
    words = " ".join(picture.itertext())
    for noun in ("Gateway", "Autoscaler", "Planner", "Packer", "Demand", "Placement", "Endpoints"):
        assert noun in words

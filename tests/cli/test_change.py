from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Tangram = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("running")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes documents to a file in a folder of its own; the path."""

    def write(*documents: object) -> str:
        folder = tmp_path / "specs"
        folder.mkdir(exist_ok=True)
        (folder / "fleet.yaml").write_text(yaml.safe_dump_all(documents))
        return str(folder / "fleet.yaml")

    return write


def test_set_changes_what_is_given(tangram: Tangram, facade: Any) -> None:
    ran = tangram("set", "digits", "--target-qps", "12.5", "--max-replicas", "6")
    assert ran.out == "model/digits scaled: replicas auto, range 1-6, target QPS 12.5\n"
    scaling = facade.specs_by_name["digits"].spec.scaling
    assert (scaling.target_qps, scaling.min_replicas, scaling.max_replicas) == (12.5, 1, 6)
    assert "replicas 3," in tangram("set", "digits", "--replicas", "3").out
    assert "replicas auto," in tangram("set", "digits", "--replicas", "auto").out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to set"),
        (("--replicas", "many"), "--replicas: 'many' is neither a whole number nor auto"),
        (("--replicas", "-1"), "--replicas"),
        (("--min-replicas", "9"), "minReplicas 9 is greater than maxReplicas 4"),
        (("--target-qps", "0"), "targetQPS"),
        (("--target-qps", "inf"), ""),
    ],
)
def test_set_refuses_what_makes_no_sense(tangram: Tangram, facade: Any, options: tuple[str, ...], said: str) -> None:
    before = facade.specs_by_name["digits"]
    ran = tangram("set", "digits", *options)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert facade.specs_by_name["digits"] == before


def test_set_of_a_model_that_is_not_there(tangram: Tangram) -> None:
    ran = tangram("set", "nope", "--replicas", "1")
    assert (ran.code, ran.err) == (1, "error: no model 'nope'; there is digits\n")


def test_apply_tells_what_changed(tangram: Tangram, facade: Any, fakes: Any, write: Callable[..., str]) -> None:
    path = write(fakes.model_document("faces"))
    assert tangram("apply", "-f", path, "--dry-run").out == "model/faces created (dry run)\n"
    assert "faces" not in facade.specs_by_name
    assert tangram("apply", "-f", path).out == "model/faces created\n"
    assert tangram("apply", "-f", path).out == "model/faces unchanged\n"
    assert tangram("apply", "-f", write(fakes.model_document("faces", maxReplicas=9))).out == "model/faces configured\n"


def test_paths_mean_the_files_folder_wherever_the_controller_runs(
    tangram: Tangram, facade: Any, fakes: Any, write: Callable[..., str]
) -> None:
    path = write(fakes.model_document("faces"))
    tangram("apply", "-f", path)
    assert facade.specs_by_name["faces"].spec.runtime.model == str(Path(path).parent / "faces.py")


def test_apply_waits_until_the_models_serve(
    tangram: Tangram, facade: Any, fakes: Any, write: Callable[..., str]
) -> None:
    assert tangram("apply", "-f", write(fakes.model_document("faces")), "--wait").out.endswith("all ready\n")
    facade.ready_at_once = False
    ran = tangram("apply", "-f", write(fakes.model_document("texts")), "--wait", "--timeout", "0")
    assert ran.code == 1
    assert "texts: not ready after 0 s: 0 of 1 ready" in ran.err


def test_apply_waits_for_the_new_revision(tangram: Tangram, fakes: Any, write: Callable[..., str]) -> None:
    document = fakes.model_document("digits")
    document["spec"]["slice"]["compute"] = 30
    ran = tangram("apply", "-f", write(document), "--wait", "--timeout", "0")
    assert ran.code == 1
    assert "digits-7f3a1 of the former revision is still there" in ran.err


def test_bad_files_name_each_problem_and_change_nothing(
    tangram: Tangram, facade: Any, fakes: Any, write: Callable[..., str], tmp_path: Path
) -> None:
    path = write(fakes.model_document("faces"), fakes.model_document("texts", minReplicas=9, colour="blue"))
    ran = tangram("apply", "-f", path)
    assert (ran.code, ran.out) == (2, "")
    assert "spec.scaling.colour: is not a field here" in ran.err
    assert all(line.startswith(f"error: {path}: ") for line in ran.err.splitlines())
    assert sorted(facade.specs_by_name) == ["digits"]
    for content, said in (("a: [", "line 1"), ("- 1\n", "is not a mapping"), ("", "holds no documents")):
        (tmp_path / "bad.yaml").write_text(content)
        ran = tangram("apply", "-f", "bad.yaml")
        assert ran.code == 2
        assert said in ran.err
        assert ran.err.count("\n") == 1
    assert tangram("apply", "-f", "missing.yaml").code == 2


def test_what_yaml_takes_for_a_date_is_text(
    tangram: Tangram, facade: Any, fakes: Any, write: Callable[..., str]
) -> None:
    text = yaml.safe_dump(fakes.model_document("faces"))
    path = Path(write())
    path.write_text(text.replace("name: faces", "name: faces\n  labels: {since: 2024-01-02}"))
    assert tangram("apply", "-f", str(path)).code == 0
    assert facade.specs_by_name["faces"].metadata.labels == {"since": "2024-01-02"}


def test_delete(tangram: Tangram, facade: Any) -> None:
    assert tangram("delete", "digits", "--wait").out == "model/digits deleted\n"
    assert not facade.specs_by_name
    assert tangram("delete", "digits").code == 1


def test_delete_waits_for_the_last_replica(tangram: Tangram, facade: Any) -> None:
    real = facade.delete

    async def keep(name: str) -> None:
        replicas = facade.replica_views
        await real(name)
        facade.replica_views = replicas

    facade.delete = keep
    ran = tangram("delete", "digits", "--wait", "--timeout", "0")
    assert ran.code == 1
    assert "still there after 0 s: digits-7f3a1" in ran.err

"""`tangram replay`: figures and a plot of a trace, or one line that says what is wrong."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tangram.cli.client import CommandError
from tangram.cli.main import app
from tangram.cli.replay import ReplayOptions, policies_of, run

FLEET = """
apiVersion: tangram.dev/v1alpha1
kind: Model
metadata: {name: digits}
spec:
  runtime: {model: m.py}
  slice: {memory: {request: 64Mi}, compute: 20}
  scaling: {minReplicas: 1, maxReplicas: 10, targetQPS: 5}
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    path = tmp_path / "trace.csv"
    path.write_text("# bin_s=10\ncount\n" + "\n".join(["40"] * 6 + ["200"] * 12 + ["40"] * 6) + "\n")
    return path


def test_figures_of_several_policies_over_the_same_requests(trace: Path) -> None:
    arguments = ["replay", str(trace), "--model", f"{trace.parent}/fleet.yaml#digits", "--policy", "hpa,ours"]
    ended = CliRunner().invoke(app, [*arguments, "--start", "5", "-o", "json"])
    assert ended.exit_code == 0, ended.output
    ours, hpa = json.loads(ended.output)
    assert (ours["policy"], hpa["policy"]) == ("ours", "hpa")
    assert ours["requests"] == hpa["requests"] > 2000
    assert 3 <= ours["peakReplicas"] <= 10


def test_the_table_and_the_plot(trace: Path) -> None:
    ended = CliRunner().invoke(app, ["replay", str(trace), "--model", f"{trace.parent}/fleet.yaml#digits"])
    assert ended.exit_code == 0, ended.output
    assert "LATE %" in ended.output
    assert "replicas     " in ended.output


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "fleet.yaml"}, "FILE#NAME"),
        ({"model": "{folder}/fleet.yaml#faces"}, "declares no model 'faces'; there are: digits"),
        ({"bins": "3"}, "--bins"),
        ({"trace": Path("missing.csv")}, "missing.csv: cannot be read"),
    ],
)
def test_what_is_wrong_is_named(trace: Path, change: dict[str, object], told: str) -> None:
    given = {"trace": trace, "model": "{folder}/fleet.yaml#digits", **change}
    given["model"] = str(given["model"]).format(folder=trace.parent)
    with pytest.raises(CommandError, match=told):
        run(ReplayOptions(**given))  # type: ignore[arg-type]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(CommandError, match="'best' is not known"):
        policies_of("ours,best")


def test_a_picture_of_several_policies(trace: Path) -> None:
    png = trace.parent / "picture.png"
    arguments = ["replay", str(trace), "--model", f"{trace.parent}/fleet.yaml#digits", "--policy", "ours,hpa"]
    ended = CliRunner().invoke(app, [*arguments, "--png", str(png)])
    assert ended.exit_code == 0, ended.output
    assert png.read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(app, [*arguments, "--png", str(trace.parent / "no" / "picture.png")])
    assert (refused.exit_code, "--png" in refused.output) == (1, True)


def test_without_matplotlib_it_is_said_what_to_install(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["replay", str(trace), "--model", f"{trace.parent}/fleet.yaml#digits", "--png", "x.png"]
    ended = CliRunner().invoke(app, arguments)
    assert (ended.exit_code, "install tangram-serving[plot]" in ended.output) == (1, True)


def test_schedules_need_to_know_when_the_trace_began(trace: Path) -> None:
    window = "schedules: [{start: 0 8 * * *, end: 0 18 * * *, minReplicas: 6}]"
    (trace.parent / "fleet.yaml").write_text(FLEET.replace("targetQPS: 5", f"targetQPS: 5, {window}"))
    given = {"trace": trace, "model": f"{trace.parent}/fleet.yaml#digits"}
    with pytest.raises(CommandError, match="--began: model digits has schedules"):
        run(ReplayOptions(**given))  # type: ignore[arg-type]
    _, (open_,) = run(ReplayOptions(**given, began=datetime(2026, 3, 2, 9, tzinfo=UTC)))  # type: ignore[arg-type]
    _, (closed,) = run(ReplayOptions(**given, began=datetime(2026, 3, 2, 3, tzinfo=UTC)))  # type: ignore[arg-type]
    assert min(open_.outcome.series.total[60:]) >= 6 > min(closed.outcome.series.total[60:])

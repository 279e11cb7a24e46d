from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tangram.console import live


def drawn(picture: RenderableType, width: int = 80) -> str:
    """As text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(picture)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def picture(fakes: Any) -> Any:
    facade = fakes.FakeFacade()
    facade.specs_by_name["digits"] = fakes.parse_documents([fakes.model_document()]).models[0]
    facade.replica_views += [fakes.a_replica(), fakes.a_replica("digits-2", phase="CrashLoopBackOff")]
    facade.device_views.append(fakes.a_device(compute_requested=50))

    def draw(**status: Any) -> RenderableType:
        view = facade.status().model_copy(update=status)
        return live.picture(view, facade.models(), facade.replica_views, facade.devices(), fakes.NOW)

    return draw


def test_everything_is_there_in_eighty_columns(picture: Any) -> None:
    text = drawn(picture())
    for part in ("41.2 req/s", "digits-7f3a1", "CrashLoopBackOff", "128Mi/1000Mi", "█████░░░░░  50%"):
        assert part in text
    assert "…" not in text


def test_trouble_is_in_the_first_line(picture: Any) -> None:
    head = drawn(picture(oversold=("node-a/gpu-0",), adopting=True), 120).splitlines()[0]
    assert "OVERSOLD: node-a/gpu-0" in head
    assert "adopting" in head


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 10, "░░░░"), (5, 10, "██░░"), (10, 10, "████"), (20, 10, "████"), (1, 0, "░░░░")]
)
def test_bars(part: float, whole: float, text: str) -> None:
    assert live.bar(part, whole, 4).plain == text

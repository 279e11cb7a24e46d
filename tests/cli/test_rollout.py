from __future__ import annotations

from typing import Any


def test_status_says_how_it_stands_and_lists_revisions(tangram: Any, running: str) -> None:
    ran = tangram("rollout", "status", "digits", "--wait")
    assert ran.code == 0
    assert ran.out.startswith("Complete: revision 0badcafe to ")
    assert "current" in ran.out.splitlines()[3]


def test_undo_goes_back_or_says_why_not(tangram: Any, running: str) -> None:
    assert tangram("rollout", "undo", "digits").code == 0
    ran = tangram("rollout", "undo", "digits", "--to-revision", "9")
    assert ran.code == 2
    assert "no other revision 9" in ran.err


def test_an_unknown_model(tangram: Any, running: str) -> None:
    ran = tangram("rollout", "status", "nothing")
    assert ran.code != 0 and "nothing" in ran.err

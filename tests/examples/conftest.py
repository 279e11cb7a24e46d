from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tangram.node.runtimes.embedded import Model
from tangram.node.runtimes.embedded.loader import load_class

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example() -> Iterator[Callable[[str], Model]]:
    """A loaded example model by name, as the embedded server has it; nothing stays imported."""
    path, modules = list(sys.path), set(sys.modules)

    def load(name: str) -> Model:
        model = load_class(EXAMPLES / "models" / name / "model.py")()
        model.load()
        return model

    yield load
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]

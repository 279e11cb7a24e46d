from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The module tests/control/fake_facade.py."""
    if "fake_facade" not in sys.modules:
        path = Path(__file__).parents[1] / "control" / "fake_facade.py"
        spec = importlib.util.spec_from_file_location("fake_facade", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fake_facade"] = module
        spec.loader.exec_module(module)
    return sys.modules["fake_facade"]

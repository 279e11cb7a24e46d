"""What all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
from hypothesis import settings

from gateway import native

# Timing never decides a test, and a run that fails can be run again the same.
settings.register_profile("tangram", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tangram")

if os.environ.get("TANGRAM_TEST_NATIVE") == "1" and (lacking := native.take()):
    # tests/gateway/test_native.py asks for it, once it has been compiled.
    raise pytest.UsageError(f"no native code: {lacking}")


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Path of a program by name; skips the test without it, or fails it where TANGRAM_REQUIRE_TOOLS=1 (as in CI)."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            said = f"{name} is not installed"
            if os.environ.get("TANGRAM_REQUIRE_TOOLS") == "1":
                pytest.fail(said)
            pytest.skip(said)
        return path

    return find

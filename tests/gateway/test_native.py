"""Compiled modules: when they are found, and that the fast path behaves the same on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import native

ROOT = Path(__file__).parents[2]
#: Where the compiled modules decide what a client gets, and the fuzzer, which holds them against the full path.
SAME = ("fuzz", "conformance", "proxy", "clients", "failures", "plans", "answers", "chunks", "limits", "dispatch")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    copy = tmp_path / "gateway"
    shutil.copytree(ROOT / "gateway", copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_any_change_of_a_source_has_another_key(package):
    before = native.key(package)
    assert before == native.key()
    # mypyc takes over constants of modules that it does not compile.
    timeouts = package / "timeouts.py"
    timeouts.write_text(timeouts.read_text().replace("stall_s: float = 60.0", "stall_s: float = 61.0"))
    changed = native.key(package)
    assert changed != before
    timeouts.rename(package / "pauses.py")
    assert native.key(package) not in (before, changed)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


def test_what_was_compiled_from_other_sources_is_not_taken(tmp_path):
    (tmp_path / "native" / "0123456789abcdef0123").mkdir(parents=True)
    script = f"import sys; sys.prefix = {str(tmp_path)!r}; from gateway import native; print(native.take())"
    said = run("-c", script + "; import gateway.relay; print(gateway.relay.__file__)").stdout.splitlines()
    assert said == ["there is none for these sources; `make native` compiles it", str(ROOT / "gateway" / "relay.py")]


MAKE = """import sysconfig; f = native.home() / native.key(); f.mkdir(parents=True);
library = f / ('gateway_native__mypyc' + sysconfig.get_config_var('EXT_SUFFIX')); library.write_bytes(b'not a library')
"""


@pytest.mark.parametrize("damage", ["library.write_bytes(b'not')", "library.unlink()", "(f / 'sums').unlink()"])
def test_a_build_that_is_not_as_it_was_made_is_not_taken(tmp_path, damage):
    script = f"import sys; sys.prefix = {str(tmp_path)!r}; from gateway import native; "
    said = run("-c", f"{script}{MAKE}native.seal(f); assert native.whole(f); {damage}; print(native.take())").stdout
    assert said.endswith(" is damaged; `python -m gateway.native` compiles it again\n")


@pytest.mark.integration
def test_a_compiler_that_fails_is_one_line(tmp_path):
    pytest.importorskip("mypyc")
    script = f"import sys; sys.prefix = {str(tmp_path)!r}; from gateway import native; sys.exit(native.main())"
    ended = run("-c", script, CC="/bin/false")
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1] == (
        "The gateway's worker runs as plain Python: the C compiler failed, for the reasons above."
    )
    assert not [path for path in (tmp_path / "native").iterdir() if path.name != "types"]


def test_a_library_that_cannot_be_loaded_is_said_and_left(tmp_path):
    script = f"import sys; sys.prefix = {str(tmp_path)!r}; from gateway import native; "
    said = run(
        "-c",
        script + MAKE + "native.seal(f); print(native.take()); import gateway.relay; print(gateway.relay.__file__)",
    ).stdout
    why, file = said.splitlines()
    assert why.startswith("it cannot be loaded: ")
    assert file == str(ROOT / "gateway" / "relay.py")


def test_without_a_compiler_the_reason_is_one_line(tmp_path):
    script = f"import sys; sys.prefix = {str(tmp_path)!r}; from gateway import native; sys.exit(native.main())"
    ended = run("-c", script, CC="no-such-compiler")
    assert ended.returncode == 1
    assert ended.stdout == "The gateway's worker runs as plain Python: there is no C compiler (no-such-compiler).\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def compiled() -> None:
    if not (native.home() / native.key()).is_dir():
        said = "the gateway is not compiled for these sources: make native"
        if os.environ.get("TANGRAM_REQUIRE_TOOLS") == "1":
            pytest.fail(said)
        pytest.skip(said)


@pytest.mark.integration
def test_all_modules_are_imported_as_compiled(compiled):
    script = "from gateway import native; assert not native.take(); import importlib; "
    script += "print(*(importlib.import_module('gateway.' + name).__file__ for name in native.MODULES), sep='\\n')"
    files = run("-c", script).stdout.splitlines()
    assert len(files) == len(native.MODULES)
    assert all(file.startswith(str(native.home() / native.key())) for file in files)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_compiled_modules_pass_the_tests_of_the_fast_path(compiled):
    if os.environ.get("TANGRAM_TEST_NATIVE") == "1":
        pytest.skip("this is such a run")
    files = [f"tests/gateway/test_{name}.py" for name in SAME]
    options = ["-q", "-p", "no:cacheprovider", "-k", "not full and not random_model_names", "-m", "not gpu"]
    ended = run("-m", "pytest", *options, *files, TANGRAM_TEST_NATIVE="1")
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]

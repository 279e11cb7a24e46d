"""The modules that each request passes through, as compiled code where there is some.

mypyc makes C of typed Python. `python -m gateway.native` has it compile `MODULES`; a worker calls `take` before it
imports any of them, and they are then imported as compiled. The .py files stay the one source: without a compiler,
without mypy, or with `--no-native` they are run as they are, and all behaves the same.

What was compiled lies under the environment's prefix, in a folder named after what it was made from (`key`): all of
the gateway's sources, since mypyc takes over constants and types from those that it does not compile, and the Python
that is to run it. Whoever changes a line has another key, so a stale build is never found. A build that is not as it
was made (a disk was full, or lost power) is not taken: a part of it alone would crash.

What mypyc asks of a module that is compiled:
- its dataclasses have no slots of their own: mypyc gives each of its classes a fixed layout anyway, and has no use for
  the second class that `slots=True` makes;
- a slice of bytes never begins after its end: what is empty in Python is an error there;
- a tuple is a value to it: two names for one tuple need not be the same object, so none is compared with `is`;
- what is declared as an int, bytes or a class of `MODULES` is checked to be one wherever it comes from other code, with
  a TypeError;
- its classes cannot be given other methods at run time, nor its `Final` constants another value.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Final

MODULES: Final = (
    "answers",
    "chunks",
    "counts",
    "dispatch",
    "health",
    "hedging",
    "lane",
    "leases",
    "limits",
    "meter",
    "outbox",
    "plain",
    "plans",
    "pools",
    "refusal",
    "relay",
    "relays",
    "routing",
    "tenants",
    "timeouts",
    "tunnel",
    "upstream",
)
#: What all of them share is one library; each of them is a small one that refers to it.
LIBRARY: Final = "gateway_native__mypyc"
_GROUP: Final = "gateway_native"
_HERE: Final = Path(__file__).parent
#: The digests of a build's files.
_SUMS: Final = "sums"
#: Builds for other sources that are kept, so that checkouts that share an environment need not build in turns.
_KEPT: Final = 4


class CannotBuild(Exception):
    """There is no compiled code to be had; the text says why."""


def key(package: Path = _HERE) -> str:
    """What the compiled modules depend on."""
    digest = hashlib.sha256(f"{sysconfig.get_config_var('SOABI')} {sys.version} {','.join(MODULES)}".encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(b"%b %d " % (path.relative_to(package).as_posix().encode(), path.stat().st_size))
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def home() -> Path:
    """Where the builds of this environment lie."""
    return Path(sys.prefix) / "native"


def seal(folder: Path) -> None:
    """Note what a build is made of. Raises OSError."""
    (folder / _SUMS).write_text(_sums(folder))


def whole(folder: Path) -> bool:
    """Whether a build is there, as it was made."""
    try:
        return (folder / _SUMS).read_text() == _sums(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _sums(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(folder)}\n" for p in files)


def take() -> str:
    """Have the modules imported as compiled, from now on; empty, or why they are not."""
    if imported := [name for name in MODULES if f"gateway.{name}" in sys.modules]:
        return f"gateway.{imported[0]} has been imported already"
    folder = home() / key()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if not folder.is_dir():
        return "there is none for these sources; `make native` compiles it"
    if not whole(folder):
        return f"{folder} is damaged; `python -m gateway.native` compiles it again"
    try:
        spec = spec_from_file_location(LIBRARY, folder / f"{LIBRARY}{suffix}")
        if spec is None or spec.loader is None:
            return f"{folder} holds no library"
        library = module_from_spec(spec)
        spec.loader.exec_module(library)
    except (ImportError, OSError) as error:
        return f"it cannot be loaded: {error}"
    sys.modules[LIBRARY] = library
    import gateway

    gateway.__path__.insert(0, str(folder / "gateway"))
    return ""


def build() -> Path:
    """Compile the modules, unless they have been; where they lie. Raises CannotBuild."""
    target = home() / key()
    if whole(target):
        return target
    try:
        from mypyc.build import mypycify
        from setuptools import Distribution
        from setuptools.command.build_ext import build_ext
        from setuptools.errors import BaseError, CompileError, LinkError
    except ImportError as error:
        raise CannotBuild(f"{error.name} is not installed") from None
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        raise CannotBuild(f"there is no C compiler ({compiler})")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise CannotBuild("Python's headers are not installed (Python.h)")
    try:
        home().mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="work-", dir=home()))
    except OSError as error:
        raise CannotBuild(f"{home()}: {error.strerror}") from None
    before = Path.cwd()
    os.chdir(_HERE.parent)
    try:
        options = ["--config-file=", f"--cache-dir={home() / 'types'}", f"--python-executable={sys.executable}"]
        extensions = mypycify(
            [*options, *(f"gateway/{name}.py" for name in MODULES)],
            opt_level="2",
            debug_level="0",
            multi_file=True,
            group_name=_GROUP,
            target_dir=str(work / "c"),
        )
        command = build_ext(Distribution({"name": "gateway", "ext_modules": extensions}))
        command.build_lib, command.build_temp = str(work / "lib"), str(work / "objects")
        command.parallel = len(os.sched_getaffinity(0))
        command.ensure_finalized()
        command.run()
        seal(work / "lib")
        if not whole(target):
            shutil.rmtree(target, ignore_errors=True)
        with suppress(OSError):
            # Unless another build was sooner.
            (work / "lib").rename(target)
    except SystemExit:
        raise CannotBuild("mypyc does not take the sources, for the reasons above") from None
    except (BaseError, CompileError, LinkError):
        raise CannotBuild("the C compiler failed, for the reasons above") from None
    except OSError as error:
        raise CannotBuild(f"{error.filename or home()}: {error.strerror}") from None
    finally:
        os.chdir(before)
        shutil.rmtree(work, ignore_errors=True)
    _forget(target)
    return target


def _forget(made: Path) -> None:
    """Keep the newest builds."""
    builds = sorted((p for p in home().iterdir() if len(p.name) == len(made.name)), key=lambda p: p.stat().st_mtime)
    for old in builds[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """Compile, or say why not."""
    try:
        build()
    except CannotBuild as error:
        print(f"The gateway's worker runs as plain Python: {error}.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

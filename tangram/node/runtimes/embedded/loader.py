"""Finds the model class in a Python file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tangram.node.runtimes.embedded.api import Model


class LoadError(Exception):
    """The file holds no model that can be served; the text says why."""


def load_class(path: Path) -> type[Model]:
    """The one subclass of `Model` that the file defines. The file's folder is put on the import path."""
    path = path.resolve()
    if not path.is_file():
        raise LoadError(f"{path}: no such file")
    name = f"tangram_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path}: is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Model) and value.__module__ == name
    ]
    if len(found) != 1:
        names = ", ".join(sorted(c.__name__ for c in found)) or "none"
        raise LoadError(f"{path}: must define exactly one subclass of Model, has {names}")
    return found[0]

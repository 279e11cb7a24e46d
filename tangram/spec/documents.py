"""Reading declarations: YAML files and what a REST client sent.

All or nothing: every problem of every document is told in one `SpecError`, whose lines name the document, the path of
the field, the value and the mend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from tangram.spec.base import API_VERSION, SpecError
from tangram.spec.fleet import Fleet
from tangram.spec.model import Model
from tangram.spec.tenant import Tenant


@dataclass(frozen=True, slots=True)
class Documents:
    """What one file or request declares."""

    models: tuple[Model, ...] = ()
    fleet: Fleet | None = None
    tenants: tuple[Tenant, ...] = ()


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a mapping that gives a key twice is an error instead of losing the first."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is not text; write a word", key.start_mark)
        if key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice; keep one", key.start_mark
                )
            seen.add(key.value)
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> list[Any]:
    """The raw documents of a YAML file, with relative paths made absolute against the file's folder.

    Raises SpecError when the file cannot be read or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"{path}: cannot be read: {reason}") from error
    try:
        documents = [d for d in yaml.load_all(text, Loader=_UniqueKeyLoader) if d is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(f"{path}: {where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not YAML: {error}") from error
    except RecursionError as error:
        raise SpecError(f"{path}: is nested too deeply; a Model or Fleet needs a dozen levels at most") from error
    except ValueError as error:
        # A scalar that looks like a number or a date and is none that Python can hold.
        raise SpecError(f"{path}: holds a value that cannot be read: {error}") from error
    base = path.resolve().parent
    for document in documents:
        runtime = _dig(document, "spec", "runtime")
        if isinstance(runtime, dict):
            for key in ("model", "workingDir"):
                if isinstance(value := runtime.get(key), str) and value:
                    runtime[key] = str(base / value)
            runtime.setdefault("workingDir", str(base))
        prometheus = _dig(document, "spec", "prometheus")
        if isinstance(prometheus, dict) and isinstance(file := prometheus.get("bearerTokenFile"), str) and file:
            prometheus["bearerTokenFile"] = str(base / file)
    return documents


def load_documents(path: Path) -> Documents:
    """Read and check a YAML file of `Model` and `Fleet` documents; SpecError names what is wrong and where."""
    documents = read_yaml(path)
    if not documents:
        raise SpecError(f"{path}: holds no documents; declare at least one Model")
    try:
        return parse_documents(documents)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def parse_documents(documents: Sequence[Any]) -> Documents:
    """Check raw documents; all problems of all documents are reported in one SpecError, a line each."""
    models: list[Model] = []
    tenants: list[Tenant] = []
    fleet: Fleet | None = None
    problems: list[str] = []
    for index, document in enumerate(documents, 1):
        kind = document.get("kind") if isinstance(document, dict) else None
        name = _dig(document, "metadata", "name")
        title = f"document {index}" + (f" ({kind} {name})" if kind and name else "")
        if kind not in ("Model", "Fleet", "Tenant"):
            problems.append(f"{title}: kind: {kind!r} is not known; write Model, Fleet or Tenant")
            continue
        if document.get("apiVersion") is None:
            problems.append(f"{title}: apiVersion: is missing; write {API_VERSION}")
            continue
        try:
            if kind == "Model":
                models.append(Model.model_validate(document))
            elif kind == "Tenant":
                tenants.append(Tenant.model_validate(document))
            elif fleet is not None:
                problems.append(f"{title}: kind: a second Fleet; declare one")
            else:
                fleet = Fleet.model_validate(document)
        except ValidationError as error:
            problems += [f"{title}: {line}" for line in explain_validation(error)]
    for what, names in (("Model", [m.name for m in models]), ("Tenant", [t.name for t in tenants])):
        twice = [n for n in sorted(set(names)) if names.count(n) > 1]
        problems += [f"{what} {n}: metadata.name: declared twice; names are unique" for n in twice]
    problems += clashes(models)
    if problems:
        raise SpecError("\n".join(problems))
    return Documents(tuple(models), fleet, tuple(tenants))


def clashes(models: Sequence[Model], others: Sequence[Model] = ()) -> list[str]:
    """Names and aliases that two models would answer to, a line each; those among `others` alone are left out."""
    problems = []
    fresh = {m.name for m in models}
    names = fresh | {m.name for m in others}
    owners: dict[str, str] = {}
    for model in (*others, *models):
        new = model.name in fresh
        for alias in dict.fromkeys(model.spec.traffic.aliases):
            if alias in names and alias != model.name:
                if new:
                    told = f"{alias!r} is the name of Model {alias}; remove it, or rename one of the two"
                    problems.append(f"Model {model.name}: spec.traffic.aliases: {told}")
                elif alias in fresh:
                    told = f"{alias!r} is an alias of Model {model.name}; choose another, or remove it there"
                    problems.append(f"Model {alias}: metadata.name: {told}")
            owner = owners.setdefault(alias, model.name)
            if new and owner != model.name:
                told = f"{alias!r} is an alias of Model {owner} too; keep it in one of the two"
                problems.append(f"Model {model.name}: spec.traffic.aliases: {told}")
    return problems


_MESSAGES: Final[Mapping[str, str]] = {
    "extra_forbidden": "is not a field here; remove it or check its spelling",
    "missing": "is missing; give it a value",
}


def explain_validation(error: ValidationError) -> list[str]:
    """One line per problem: path of the field, what is wrong with which value."""
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems:
        depth = len(problem["loc"])
        if problem["type"] == "too_short" and any(p["loc"][:depth] == problem["loc"] != p["loc"] for p in problems):
            # Its items are there, and wrong.
            continue
        path = ""
        for part in problem["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}"
        message = _MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        if problem["type"] not in ("extra_forbidden", "missing", "value_error"):
            message = f"{value!r}: {message[:1].lower()}{message[1:]}"
        lines.append(f"{path.lstrip('.') or '(document)'}: {message}")
    return lines


def _dig(document: object, *keys: str) -> Any:
    for key in keys:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document

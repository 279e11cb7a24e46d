"""The commands that look: get, describe, explain, status, logs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from tangram.cli.client import Client, CommandError, Missing, segment
from tangram.console import tables
from tangram.console.tables import Kind
from tangram.control.views import DescribeView, ExplainView, StatusView

_WATCH_S: Final = 1.0
_DATA: Final = ("json", "yaml")
_NEWEST_FIRST: Final = (tables.DECISIONS, tables.EVENTS)


def width() -> int | None:
    """Columns of the terminal; None where the output goes elsewhere and nothing is to be cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def dump(value: object, output: str | None) -> str:
    """As YAML or JSON."""
    if output == "yaml":
        import yaml

        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip()
    return json.dumps(value, indent=2, ensure_ascii=False)


def kind_of(word: str) -> Kind[Any]:
    """The noun meant; CommandError where there is none."""
    kind = tables.kind_of(word)
    if kind is None:
        raise CommandError(f"{word!r} is nothing to get; get {', '.join(k.plural for k in tables.KINDS)}", 2)
    return kind


Fetch = Callable[[], list[dict[str, Any]]]


def fetch_of(client: Client, kind: Kind[Any], name: str | None, model: str | None, limit: int | None) -> Fetch:
    """What asks the API for the rows meant; raises Missing when called for a name that is not there."""
    if kind in _NEWEST_FIRST:
        # What happened has no name of its own: a name is its model's.
        return lambda: list(client.get(f"/{kind.plural}", model=name or model, limit=limit)["items"])
    if kind is tables.MODELS:
        if name is not None:
            return lambda: [client.get(f"/models/{segment(name)}")]
        return lambda: list(client.get("/models")["items"])

    def listed() -> list[dict[str, Any]]:
        query = {"model": model} if kind is tables.REPLICAS else {}
        found = list(client.get(f"/{kind.plural}", **query)["items"])
        key = "id" if kind is tables.DEVICES else "name"
        chosen = [item for item in found if name in (None, item[key])]
        if name is not None and not chosen:
            there = ", ".join(item[key] for item in found) or "none"
            raise Missing(f"no {kind.singular} {name!r}; there are: {there}")
        return chosen

    return listed


def get(fetch: Fetch, kind: Kind[Any], output: str | None, *, single: bool) -> str:
    """The text of one look; `single` shows one object bare instead of in a list."""
    items = fetch()
    if output in _DATA:
        return dump(items[0] if single and len(items) == 1 and kind not in _NEWEST_FIRST else {"items": items}, output)
    views = [kind.view.model_validate(item) for item in items]
    if output == "name":
        return "\n".join(f"{kind.singular}/{kind.name(view)}" for view in views)
    if not views:
        return f"no {kind.plural}"
    return tables.table(kind, views, time.time(), wide=output == "wide", width=width())


def watch(fetch: Fetch, kind: Kind[Any], output: str | None, *, sleep: Callable[[float], None]) -> Iterator[str]:
    """First all rows, then each row again when it changes; never ends."""
    seen: dict[str, str] = {}
    titled = False
    while True:
        items = fetch()
        if kind in _NEWEST_FIRST:
            items.reverse()
        fresh = []
        for item in items:
            key = json.dumps(item) if kind is tables.EVENTS else kind.name(kind.view.model_validate(item))
            # Ages run on by themselves: as of the epoch they stand still.
            row = _row(kind, item, output)
            if seen.get(key) != row:
                seen[key] = row
                fresh.append(item)
        if fresh and output in _DATA:
            yield "\n".join(("---\n" if output == "yaml" else "") + dump(item, output) for item in fresh)
        elif fresh:
            views = [kind.view.model_validate(item) for item in fresh]
            if output == "name":
                yield "\n".join(f"{kind.singular}/{kind.name(view)}" for view in views)
            else:
                text = tables.table(kind, views, time.time(), wide=output == "wide", width=width())
                yield text if not titled else text.partition("\n")[2]
                titled = True
        sleep(_WATCH_S)


def _row(kind: Kind[Any], item: Mapping[str, Any], output: str | None) -> str:
    if output in _DATA:
        return json.dumps(item, sort_keys=True)
    if output == "name":
        return ""
    return tables.table(kind, [kind.view.model_validate(item)], 0.0, wide=output == "wide")


def describe(client: Client, name: str, output: str | None) -> str:
    """All about a model."""
    from tangram.console.describe import describe as text

    answer = client.get(f"/models/{segment(name)}/describe")
    if output in _DATA:
        return dump(answer, output)
    return text(DescribeView.model_validate(answer), time.time(), width=width())


def explain(client: Client, name: str, output: str | None) -> str:
    """Why this many, why there."""
    from tangram.console.story import story

    answer = client.get(f"/models/{segment(name)}/explain")
    return dump(answer, output) if output in _DATA else story(ExplainView.model_validate(answer))


def status(client: Client, output: str | None) -> str:
    """The installation as a whole."""
    from tangram.console.describe import status as text

    answer = client.get("/status")
    if output in _DATA:
        return dump(answer, output)
    return text(StatusView.model_validate(answer), client.url, time.time())


def logs(client: Client, replica: str, *, tail: int, follow: bool) -> Iterator[bytes]:
    """What a replica wrote, in pieces."""
    return client.stream(f"/replicas/{segment(replica)}/logs", tail=tail, follow=follow)


def model_named(words: Sequence[str]) -> str:
    """The name in `describe NAME` and `describe model NAME`."""
    if len(words) == 2 and tables.kind_of(words[0]) is tables.MODELS:
        return words[1]
    if len(words) == 1 and "/" in words[0]:
        kind, _, name = words[0].partition("/")
        return model_named([kind, name])
    if len(words) == 1:
        return words[0]
    raise CommandError(f"{' '.join(words)!r} is not a model; write `describe model NAME`", 2)

"""Reasons in words, put together only when somebody reads them: most ticks of most models nobody does.

Words are a text, or a template (as for the % operator) followed by what goes into it, which may be words again.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Words: TypeAlias = str | tuple[Any, ...]


def text(words: Words) -> str:
    """The words as one text."""
    if isinstance(words, str):
        return words
    template, *parts = words
    return str(template % tuple([text(part) if isinstance(part, tuple) else part for part in parts]))

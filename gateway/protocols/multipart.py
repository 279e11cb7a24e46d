"""Finding one field of a form (`multipart/form-data`, RFC 7578) while it comes, whatever files lie before it.

`FieldFinder` is fed the body part by part and says as soon as it can what the field holds. It keeps nothing of files
but a few bytes, in which the next delimiter might begin.
"""

from __future__ import annotations

import re
from email.message import Message
from enum import Enum, auto
from typing import Final

_MAX_PART_HEAD: Final = 8 * 1024
_MAX_VALUE: Final = 1024
#: RFC 2046, section 5.1.1.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")


class BadForm(ValueError):
    """The body is no such form, or lacks the field."""


class _At(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()
    HEAD = auto()
    FILE = auto()
    VALUE = auto()


class FieldFinder:
    """Looks for the field `name`; `content_type` is that of the whole body. Raises BadForm where it has no boundary."""

    def __init__(self, content_type: str, name: str) -> None:
        boundary = _parameter(content_type, "Content-Type", "boundary")
        if boundary is None or not _BOUNDARY.fullmatch(boundary):
            raise BadForm("the Content-Type of the form names no valid boundary")
        self.span = (0, 0)
        """Where the value lies in the body, once it is known: its first byte, and the first byte after it."""
        self._name = name
        self._fed = 0
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        # The first delimiter may be the first line.
        self._held = b"\r\n"
        self._at = _At.PREAMBLE

    def feed(self, data: bytes) -> str | None:
        """The field's value once it is known; BadForm where there is none."""
        held = self._held + data
        self._fed += len(data)
        while True:
            if self._at in (_At.PREAMBLE, _At.FILE):
                found = held.find(self._delimiter)
                if found < 0:
                    self._held = held[-len(self._delimiter) + 1 :]
                    return None
                held = held[found + len(self._delimiter) :]
                self._at = _At.DELIMITER
            elif self._at is _At.DELIMITER:
                if held.startswith(b"--"):
                    raise BadForm(f"the form has no field {self._name!r}; send one")
                line, end, rest = held.partition(b"\r\n")
                if not end:
                    self._wait(held, 256)
                    return None
                if line.strip(b" \t"):
                    raise BadForm("a delimiter of the form is followed by other characters")
                held = b"\r\n" + rest
                self._at = _At.HEAD
            elif self._at is _At.HEAD:
                head, end, rest = held.partition(b"\r\n\r\n")
                if not end:
                    self._wait(held, _MAX_PART_HEAD)
                    return None
                # A value may be empty: the line end before its delimiter is then the one that ended the head.
                held = b"\r\n" + rest
                self._at = _At.VALUE if _field_name(head) == self._name else _At.FILE
                if self._at is _At.VALUE:
                    held = rest
            else:
                value, end, _ = held.partition(self._delimiter)
                if not end:
                    self._wait(held, _MAX_VALUE + len(self._delimiter))
                    return None
                try:
                    text = value.decode("utf-8")
                except UnicodeDecodeError:
                    text = ""
                if not text or len(value) > _MAX_VALUE:
                    raise BadForm(f"the field {self._name!r} of the form holds no name")
                begins = self._fed - len(held)
                self.span = begins, begins + len(value)
                return text

    def _wait(self, held: bytes, limit: int) -> None:
        if len(held) > limit:
            raise BadForm("a part of the form has a head, or a value, that is too long")
        self._held = held


def _field_name(head: bytes) -> str | None:
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon and name.strip().lower() == b"content-disposition":
            return _parameter(value.decode("utf-8", "replace").strip(), "Content-Disposition", "name")
    return None


def _parameter(value: str, field: str, name: str) -> str | None:
    message = Message()
    message[field] = value.replace("\r", " ").replace("\n", " ")
    found = message.get_param(name, header=field)
    return found if isinstance(found, str) else None

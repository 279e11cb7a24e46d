from __future__ import annotations

import hashlib
import re
from typing import Any


def test_a_key_is_made_listed_and_revoked(tangram: Any, running: str) -> None:
    made = tangram("key", "create", "acme")
    assert made.code == 0
    id = made.out.split("_")[1]
    assert id in tangram("key", "list").out
    assert "secret" not in tangram("key", "list", "acme", "-o", "json").out
    assert tangram("key", "revoke", id).code == 0
    assert id not in tangram("key", "list").out
    assert tangram("key", "revoke", id).code != 0


def test_for_a_tenant_that_is_not_there(tangram: Any, running: str) -> None:
    ran = tangram("key", "create", "nobody")
    assert ran.code != 0 and "acme" in ran.err


def test_a_key_made_here_comes_with_its_entry(tangram: Any) -> None:
    key, entry = tangram("key", "generate").out.splitlines()
    match = re.fullmatch(r"- \{id: '([0-9a-f]{8})', sha256: ([0-9a-f]{64})\}", entry)
    assert match is not None
    assert key.startswith(f"tgm_{match[1]}_")
    assert hashlib.sha256(key.encode()).hexdigest() == match[2]

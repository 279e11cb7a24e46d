"""What must outlive the controller, in SQLite: specs, replicas with their placements, decisions, events, history.

One writer, in the controller. WAL with synchronous=NORMAL: what was committed survives the death of any process. All
calls are short; they run on the event loop's thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from packer.inventory import Alternative, MigInstance, Placement, SliceRequest
from tangram.control.views import DecisionView, EventView
from tangram.core.keys import Key
from tangram.core.replica import Phase, Replica
from tangram.core.rollout import Rollout, Stage
from tangram.core.usage import Entry
from tangram.spec import Fleet, Model, Tenant

#: Each entry takes the schema from its index to the next version (PRAGMA user_version).
MIGRATIONS: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE models (
        name TEXT PRIMARY KEY, document TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE ordinals (model TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE replicas (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE decisions (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, model TEXT NOT NULL, view TEXT NOT NULL
    );
    CREATE INDEX decisions_model ON decisions (model, id);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, model TEXT NOT NULL, replica TEXT NOT NULL,
        reason TEXT NOT NULL, message TEXT NOT NULL
    );
    CREATE INDEX events_model ON events (model, id);
    CREATE TABLE history (
        at REAL NOT NULL, model TEXT NOT NULL, wanted INTEGER NOT NULL, ready INTEGER NOT NULL, qps REAL
    );
    CREATE INDEX history_at ON history (at);
    """,
    """
    CREATE TABLE revisions (
        model TEXT NOT NULL, number INTEGER NOT NULL, revision TEXT NOT NULL, document TEXT NOT NULL,
        created_at REAL NOT NULL, failed TEXT NOT NULL DEFAULT '', PRIMARY KEY (model, number)
    ) WITHOUT ROWID;
    CREATE TABLE rollouts (model TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE tenants (name TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE keys (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, sha256 TEXT NOT NULL, created_at REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE usage (
        epoch TEXT NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL, what TEXT NOT NULL, amount REAL NOT NULL,
        PRIMARY KEY (epoch, tenant, model, what)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE memories (
        model TEXT PRIMARY KEY, revision TEXT NOT NULL, at REAL NOT NULL, record TEXT NOT NULL
    );
    """,
)

#: Revisions kept a model.
KEPT_REVISIONS: Final = 10
#: Rows kept of decisions and of events, and seconds of scaling history.
KEPT_DECISIONS: Final = 10_000
KEPT_EVENTS: Final = 10_000
KEPT_HISTORY_S: Final = 7 * 86_400.0


class StoreError(Exception):
    """The database cannot be used; the text says why and what to mend."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A spec in force."""

    model: Model
    created_at: float


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A model as it once was."""

    number: int
    """Counts up with each change; a revision that is taken up again gets a new one."""
    revision: str
    model: Model
    created_at: float
    failed: str = ""
    """Why it was rolled back."""


@dataclass(frozen=True, slots=True)
class StoredMemory:
    """What was learned of a model."""

    revision: str
    """It was then."""
    at: float
    record: str


class Store:
    """Opens (and migrates) the database of a state directory."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}; make the state directory writable") from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA busy_timeout=2000")
            self._migrate(path)
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"{path}: {error}; move the file away to begin anew") from error
        except StoreError:
            self._db.close()
            raise

    def _migrate(self, path: Path) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{path}: has schema version {version}, this tangram knows {len(MIGRATIONS)}; use a newer tangram"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are taken or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite ends a transaction by itself where the disk is full, but not always.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # --- meta ---

    def meta(self, key: str) -> str | None:
        """A single value kept under a key."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        """Keep a value under a key."""
        self._db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
        )

    def next_term(self, above: int = 0) -> int:
        """The term of a controller that starts now; grows with each call, for ever, and is more than `above`."""
        term = max(int(self.meta("term") or 0), above) + 1
        self.set_meta("term", str(term))
        return term

    # --- specs ---

    def models(self) -> dict[str, StoredModel]:
        """Specs in force, by name."""
        rows = self._db.execute("SELECT name, document, created_at FROM models ORDER BY name")
        return {name: StoredModel(Model.model_validate_json(text), created) for name, text, created in rows}

    def put_model(self, model: Model, now: float) -> None:
        """Record a spec, new or changed."""
        self._db.execute(
            "INSERT INTO models VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE"
            " SET document = excluded.document, updated_at = excluded.updated_at",
            (model.name, model.model_dump_json(by_alias=True), now, now),
        )

    def delete_model(self, name: str) -> None:
        """Drop a spec."""
        tables = (("models", "name"), ("revisions", "model"), ("rollouts", "model"), ("memories", "model"))
        for table, column in tables:
            self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))

    # --- what was learned ---

    def memories(self) -> dict[str, StoredMemory]:
        """By model."""
        rows = self._db.execute("SELECT model, revision, at, record FROM memories")
        return {model: StoredMemory(*rest) for model, *rest in rows}

    def put_memory(self, model: str, memory: StoredMemory) -> None:
        """Record what was learned of a model."""
        self._db.execute(
            "INSERT INTO memories VALUES (?, ?, ?, ?) ON CONFLICT (model) DO UPDATE"
            " SET revision = excluded.revision, at = excluded.at, record = excluded.record",
            (model, memory.revision, memory.at, memory.record),
        )

    # --- revisions and rollouts ---

    def revisions(self, model: str) -> list[StoredRevision]:
        """Newest first."""
        rows = self._db.execute(
            "SELECT number, revision, document, created_at, failed FROM revisions WHERE model = ? ORDER BY number DESC",
            (model,),
        )
        return [StoredRevision(n, r, Model.model_validate_json(text), at, failed) for n, r, text, at, failed in rows]

    def put_revision(self, model: Model, now: float) -> None:
        """Record the model's revision as the one in force, unless it is."""
        name = model.name
        row = self._db.execute(
            "SELECT number, revision FROM revisions WHERE model = ? ORDER BY number DESC LIMIT 1", (name,)
        ).fetchone()
        number, latest = row or (0, "")
        if latest == model.revision:
            return
        document = model.model_dump_json(by_alias=True)
        self._db.execute("DELETE FROM revisions WHERE model = ? AND revision = ?", (name, model.revision))
        self._db.execute(
            "INSERT INTO revisions (model, number, revision, document, created_at) VALUES (?, ?, ?, ?, ?)",
            (name, number + 1, model.revision, document, now),
        )
        self._db.execute(
            "DELETE FROM revisions WHERE model = ? AND number NOT IN"
            " (SELECT number FROM revisions WHERE model = ? ORDER BY number DESC LIMIT ?)",
            (name, name, KEPT_REVISIONS),
        )

    def fail_revision(self, model: str, revision: str, why: str) -> None:
        """Record that a revision was rolled back."""
        self._db.execute("UPDATE revisions SET failed = ? WHERE model = ? AND revision = ?", (why, model, revision))

    def rollouts(self) -> dict[str, Rollout]:
        """The last rollout of each model."""
        rows = self._db.execute("SELECT model, record FROM rollouts").fetchall()
        return {model: _rollout(json.loads(text)) for model, text in rows}

    def put_rollout(self, model: str, rollout: Rollout) -> None:
        """Record how a model's rollout stands."""
        self._db.execute(
            "INSERT INTO rollouts VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET record = excluded.record",
            (model, json.dumps(asdict(rollout))),
        )

    def fleet(self) -> Fleet | None:
        """The fleet last declared."""
        text = self.meta("fleet")
        return Fleet.model_validate_json(text) if text else None

    def put_fleet(self, fleet: Fleet) -> None:
        """Record the fleet."""
        self.set_meta("fleet", fleet.model_dump_json(by_alias=True))

    # --- tenants ---

    def tenants(self) -> dict[str, Tenant]:
        """By name."""
        rows = self._db.execute("SELECT name, document FROM tenants ORDER BY name")
        return {name: Tenant.model_validate_json(text) for name, text in rows}

    def put_tenant(self, tenant: Tenant) -> None:
        """Record a tenant, new or changed."""
        self._db.execute(
            "INSERT INTO tenants VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET document = excluded.document",
            (tenant.name, tenant.model_dump_json(by_alias=True)),
        )

    def delete_tenant(self, name: str) -> None:
        """Drop a tenant, its keys and what it used."""
        self._db.execute("DELETE FROM keys WHERE tenant = ?", (name,))
        self._db.execute("DELETE FROM usage WHERE tenant = ?", (name,))
        self._db.execute("DELETE FROM tenants WHERE name = ?", (name,))

    def usage(self) -> dict[Entry, float]:
        """What tenants used."""
        rows = self._db.execute("SELECT epoch, tenant, model, what, amount FROM usage")
        return {Entry(*row[:4]): row[4] for row in rows}

    def put_usage(self, amounts: Mapping[Entry, float], over: Iterable[str]) -> None:
        """Record amounts, new or changed, and drop those of epochs that are over."""
        with self.transaction():
            self._db.executemany("DELETE FROM usage WHERE epoch = ?", [(epoch,) for epoch in over])
            self._db.executemany(
                "INSERT INTO usage VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (epoch, tenant, model, what) DO UPDATE SET amount = excluded.amount",
                [(*entry, amount) for entry, amount in amounts.items()],
            )

    def tenant_keys(self) -> list[Key]:
        """Oldest first."""
        rows = self._db.execute("SELECT id, tenant, sha256, created_at FROM keys ORDER BY created_at, id")
        return [Key(*row) for row in rows]

    def put_key(self, key: Key) -> None:
        """Record a key's digest."""
        self._db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (key.id, key.tenant, key.sha256, key.created_at))

    def delete_key(self, id: str) -> bool:
        """Drop a key; False where there is none."""
        return self._db.execute("DELETE FROM keys WHERE id = ?", (id,)).rowcount > 0

    # --- replicas ---

    def replicas(self) -> list[Replica]:
        """Every replica on record."""
        return [_replica(json.loads(row[0])) for row in self._db.execute("SELECT record FROM replicas ORDER BY name")]

    def put_replicas(self, replicas: Iterable[Replica]) -> None:
        """Record replicas, new or changed."""
        self._db.executemany(
            "INSERT INTO replicas VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
            [(r.name, json.dumps(_record(r))) for r in replicas],
        )

    def delete_replicas(self, names: Iterable[str]) -> None:
        """Drop replicas that are gone."""
        self._db.executemany("DELETE FROM replicas WHERE name = ?", [(n,) for n in names])

    def ordinals(self) -> dict[str, int]:
        """Model -> number of its next replica; kept for ever, so that no replica's name comes twice."""
        return dict(self._db.execute("SELECT model, next FROM ordinals").fetchall())

    def put_ordinal(self, model: str, ordinal: int) -> None:
        """Record the number of a model's next replica."""
        self._db.execute(
            "INSERT INTO ordinals VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET next = excluded.next",
            (model, ordinal),
        )

    # --- decisions, events, history ---

    def add_decision(self, view: DecisionView) -> DecisionView:
        """Record a decision; returns it with its number."""
        cursor = self._db.execute(
            "INSERT INTO decisions (at, model, view) VALUES (?, ?, ?)",
            (view.at, view.model, view.model_dump_json(by_alias=True)),
        )
        return view.model_copy(update={"id": cursor.lastrowid})

    def decisions(self, model: str | None, limit: int) -> list[DecisionView]:
        """Newest first."""
        return [
            DecisionView.model_validate_json(text).model_copy(update={"id": number})
            for number, text in self._newest("SELECT id, view FROM decisions", model, limit)
        ]

    def add_event(self, event: EventView) -> None:
        """Record something that happened."""
        self._db.execute(
            "INSERT INTO events (at, model, replica, reason, message) VALUES (?, ?, ?, ?, ?)",
            (event.at, event.model, event.replica, event.reason, event.message),
        )

    def events(self, model: str | None, limit: int) -> list[EventView]:
        """Newest first."""
        rows = self._newest("SELECT at, model, replica, reason, message FROM events", model, limit)
        return [EventView(at=a, model=m, replica=r, reason=why, message=text) for a, m, r, why, text in rows]

    def _newest(self, select: str, model: str | None, limit: int) -> list[tuple[Any, ...]]:
        where, args = (" WHERE model = ?", (model, limit)) if model is not None else ("", (limit,))
        return self._db.execute(f"{select}{where} ORDER BY id DESC LIMIT ?", args).fetchall()

    def knows_model(self, name: str) -> bool:
        """Whether a model of that name was ever planned for."""
        return self._db.execute("SELECT 1 FROM ordinals WHERE model = ?", (name,)).fetchone() is not None

    def add_history(self, rows: Sequence[tuple[float, str, int, int, float | None]]) -> None:
        """Record (time, model, wanted, ready, requests per second)."""
        self._db.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?)", rows)

    def history(self, model: str, since: float) -> list[tuple[float, int, int, float | None]]:
        """(time, wanted, ready, requests per second), oldest first."""
        return self._db.execute(
            "SELECT at, wanted, ready, qps FROM history WHERE model = ? AND at >= ? ORDER BY at", (model, since)
        ).fetchall()

    def retain(self, now: float) -> None:
        """Drop what is older than is kept."""
        with self.transaction():
            for table, kept in (("decisions", KEPT_DECISIONS), ("events", KEPT_EVENTS)):
                self._db.execute(f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?", (kept,))
            self._db.execute("DELETE FROM history WHERE at < ?", (now - KEPT_HISTORY_S,))


def holds_keys(path: Path) -> bool:
    """Whether the database of a state directory has any key of a tenant; it need not exist."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return db.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return False


def _rollout(record: Mapping[str, Any]) -> Rollout:
    return Rollout(**{**record, "stage": Stage(record["stage"])})


def _record(replica: Replica) -> dict[str, Any]:
    record = asdict(replica)
    request = record["placement"]["request"]
    for key in ("device_models", "avoid"):
        request[key] = sorted(request[key])
    return record


def _replica(record: Mapping[str, Any]) -> Replica:
    placement = dict(record["placement"])
    request = dict(placement["request"])
    for key in ("device_models", "avoid"):
        request[key] = frozenset(request[key])
    placement["request"] = SliceRequest(**request)
    placement["more_devices"] = tuple(placement.get("more_devices", ()))
    placement["mig"] = tuple(MigInstance(**i) for i in placement.get("mig", ()))
    placement["alternatives"] = tuple(Alternative(**a) for a in placement["alternatives"])
    known = {f.name: record[f.name] for f in fields(Replica) if f.name in record}
    return Replica(**{**known, "phase": Phase(record["phase"]), "placement": Placement(**placement)})

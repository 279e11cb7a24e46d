"""The controller's process: `python -m tangram.control.main`, started by the supervisor.

It finds the replicas of its state directory again, applies the fleet's file if it has changed since it was last
applied, and only then lets the gateway workers and the admin API in.

SIGTERM ends the controller and leaves the replicas running, for the next one to adopt. SIGINT stops them first.
Exit code 2, after a line that begins with `error: `, means that it cannot run as it was told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from aiohttp import web

from gateway.heartbeat import Heartbeat
from gateway.wire import Report, parse_down
from tangram.control.api import make_app
from tangram.control.controller import Controller
from tangram.control.instances import given
from tangram.control.logs import set_up_logging
from tangram.control.loop import ControlLoop
from tangram.control.memories import recall
from tangram.control.paths import FILE_MARKER, StatePaths, file_digest
from tangram.control.prometheus import Prometheus
from tangram.control.security import TokenError, load_token
from tangram.control.state import ControllerState, ModelState, Replicas, fresh_policy_state
from tangram.control.store import Store, StoreError
from tangram.control.tenancy import Tenancy
from tangram.control.wire_server import WireServer
from tangram.core import convert
from tangram.core.demand import DemandTracker
from tangram.core.replica import Phase, Replica
from tangram.node import health
from tangram.node.backend import InstancePhase, InstanceRecord, InstanceStatus
from tangram.node.discover import Discovery, discover
from tangram.node.faults import Faults
from tangram.node.launch import order
from tangram.node.local import LocalBackend
from tangram.node.logs import rotate
from tangram.spec import SpecError, load_documents

log = logging.getLogger("tangram.controller")

UNUSABLE: Final = 2
#: Our own logs and the socket are looked at this often.
HOUSE_S: Final = 30.0
#: Whether the GPUs are still there is looked at this often.
HEALTH_S: Final = 5.0


class Unusable(Exception):
    """The controller cannot run as it was told; the text says why and what to mend."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; options as the supervisor gives them."""
    parser = argparse.ArgumentParser(prog="tangram-controller")
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--admin", required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--require-key", action="store_true")
    parser.add_argument("--advise", action="store_true")
    parser.add_argument("--gateway-scheme", default="http")
    parser.add_argument("--log-json", action="store_true")
    options = parser.parse_args(argv)
    set_up_logging(json_lines=options.log_json)
    try:
        asyncio.run(_run(options))
    except (Unusable, StoreError, SpecError, TokenError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return UNUSABLE
    return 0


async def _run(options: argparse.Namespace) -> None:
    paths = StatePaths(options.state)
    asked: asyncio.Queue[int] = asyncio.Queue()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, asked.put_nowait, signum)
    store = Store(paths.database)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(store.close)
        token = load_token(paths.root)
        parts = await _assemble(options, paths, store)
        stack.push_async_callback(parts.close)
        stack.callback(Heartbeat(asyncio.get_running_loop()).close)
        runner = await _serve_admin(options.admin, make_app(parts.controller, token, [_host(options.admin)]))
        stack.push_async_callback(runner.cleanup)
        await parts.wire.start(paths.wire)
        _write_endpoints(paths, options)
        turning = asyncio.create_task(parts.loop.run(), name="loop")
        asking = asyncio.create_task(Prometheus(parts.loop.state).run(), name="prometheus")
        keeping = asyncio.create_task(_keep_house(paths, options.workers, parts.wire), name="house")
        watching = asyncio.create_task(_watch_devices(parts.controller, parts.found), name="devices")
        # What is alive now lives as long as the process: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        told = await asked.get()
        if told == signal.SIGINT:
            await _stop_replicas(parts, asked)
        tasks = (turning, asking, keeping, watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        log.info("controller ends; %s", "replicas were stopped" if told == signal.SIGINT else "replicas go on")


class _Parts:
    def __init__(
        self, controller: Controller, loop: ControlLoop, wire: WireServer, backend: LocalBackend, found: Discovery
    ) -> None:
        self.controller = controller
        self.loop = loop
        self.wire = wire
        self.backend = backend
        self.found = found

    async def close(self) -> None:
        await self.loop.close()
        await self.wire.close()
        await self.backend.close()


async def _assemble(options: argparse.Namespace, paths: StatePaths, store: Store) -> _Parts:
    """Read the store, find the replicas again, apply the file; everything is at rest until the loop runs."""
    loop = asyncio.get_running_loop()
    term = store.next_term(above=_term_in_use(paths, options.workers))
    found = _discovered()
    fleet = store.fleet()
    state = ControllerState(
        inventory=convert.inventory(fleet, found.devices),
        fleet=fleet,
        demand=DemandTracker(loop.time()),
        ordinals=store.ordinals(),
        advise=options.advise,
    )
    rollouts, memories = store.rollouts(), store.memories()
    for name, stored in store.models().items():
        state.models[name] = entry = ModelState(stored.model, stored.created_at, fresh_policy_state(name, loop.time()))
        store.put_revision(stored.model, stored.created_at)
        entry.revisions = {r.revision: r.model for r in store.revisions(name)}
        entry.rollout = rollouts.get(name)
        recall(entry, memories.get(name), time.time(), loop.time())
    happened = asyncio.Event()
    backend = LocalBackend(paths.root, on_change=lambda _: happened.set())
    wire = WireServer(
        term,
        options.workers,
        on_report=lambda report: _take_report(state, wire, tenancy, happened, report),
        on_wake=lambda model: _wake(state, happened, model),
        on_worker=lambda index, same: None if same else state.demand.gone(index),
    )
    tenancy = Tenancy(store, wire.publish_settings, require_key=options.require_key)
    tenancy.publish(fleet)
    control = ControlLoop(state, store, backend, wire, backend.ports, happened)
    controller = Controller(
        state,
        store,
        backend,
        wire,
        control,
        tenancy,
        term=term,
        gateway=f"{options.gateway_scheme}://{options.listen}",
        discovered=found.devices,
    )
    ended = await _adopt(state, store, backend)
    _apply_file(options.file, controller, store, ended)
    controller.adopting = False
    log.info("term %d begins with %d models and %d replicas", term, len(state.models), len(state.replicas))
    return _Parts(controller, control, wire, backend, found)


def _term_in_use(paths: StatePaths, workers: int) -> int:
    """The latest term in the workers' tables: after the loss of the database, what they take must still be newer."""
    terms = [0]
    for index in range(workers):
        with contextlib.suppress(OSError, ValueError):
            terms.append(parse_down(paths.table_cache(index).read_bytes()).term)
    return max(terms)


def _discovered() -> Discovery:
    found = discover(socket.gethostname())
    for reason in found.reasons:
        log.info("GPUs: %s", reason)
    return found


async def _watch_devices(controller: Controller, found: Discovery) -> None:
    """Tell the controller when a GPU is not there any more, or there (again), and when it has a fault."""
    watched, faults = health.Watched(found.devices), Faults()
    while True:
        try:
            found = await asyncio.to_thread(discover, socket.gethostname())
            after = health.look(watched, found, await asyncio.to_thread(faults.look))
        except Exception:
            log.exception("GPUs could not be looked at; trying again")
        else:
            for change in health.changes(watched, after):
                log.warning("GPUs: %s", change)
            if after.devices != watched.devices:
                controller.rediscovered(after.devices)
            watched = after
        await asyncio.sleep(HEALTH_S)


async def _adopt(state: ControllerState, store: Store, backend: LocalBackend) -> frozenset[str]:
    """Match the replicas on record with the processes that live; what has no record is ended.

    Returns the replicas on record whose processes are gone.
    """
    recorded = {r.name: r for r in store.replicas()}
    records = []
    for replica in recorded.values():
        entry = state.models.get(replica.model)
        devices = state.devices_of(replica)
        if entry is None or devices is None or replica.pid is None or replica.start_ticks is None:
            continue
        model = entry.document(replica.revision)
        share = backend.settings(given(replica, devices))
        again = order(model, replica.name, replica.port, replica.placement.all_devices, share)
        records.append(InstanceRecord(again, replica.pid, replica.start_ticks, replica.started_at, replica.ready_at))
    found = await backend.adopt(records)
    backend.ports.reserve([r.port for r in recorded.values()])
    for name, status in found.items():
        if name not in recorded:
            log.warning("%s (pid %d) has no record; it is ended", name, status.pid)
            await backend.stop(name, 5.0)
            backend.forget(name)
    state.replicas = Replicas({n: _with_process(r, found.get(n)) for n, r in recorded.items()})
    return frozenset(n for n in recorded if n not in found or found[n].phase is InstancePhase.EXITED)


def _with_process(replica: Replica, status: InstanceStatus | None) -> Replica:
    """A start that was recorded, and done, without its process being recorded: it is known by its marker."""
    if status is None or replica.pid is not None or replica.phase is not Phase.STARTING:
        return replica
    return replace(replica, pid=status.pid, start_ticks=status.start_ticks, started_at=status.started_at)


def _apply_file(file: Path, controller: Controller, store: Store, ended: Collection[str] = ()) -> None:
    """Apply the file if it is not the one applied last; models that only the former one declared are removed.

    `up` applies what it was given, once: a file that was changed or removed since (its digest is in our environment)
    is left alone when a controller is started again, and nothing that it holds can stop one.
    """
    given, last = os.environ.get(FILE_MARKER), store.meta("file")
    try:
        found = file_digest(file)
    except OSError as error:
        if last is None or given is None:
            raise Unusable(f"{file}: cannot be read: {error.strerror}") from error
        found = ""
    if given is not None and last is not None and found != given:
        log.warning("%s was changed since `tangram up`; `tangram apply -f` applies what it holds now", file)
        return
    digest = f"{file.resolve()} {found}"
    if last == digest:
        return
    documents = load_documents(file)
    names = [m.name for m in documents.models]
    tenants = [t.name for t in documents.tenants]
    former = json.loads(store.meta("file_models") or "[]")
    former_tenants = json.loads(store.meta("file_tenants") or "[]")
    try:
        controller.take(
            documents,
            remove=[n for n in former if n not in names],
            remove_tenants=[n for n in former_tenants if n not in tenants],
            ended=ended,
        )
    except SpecError as error:
        raise SpecError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from error
    with store.transaction():
        store.set_meta("file", digest)
        store.set_meta("file_models", json.dumps(names))
        store.set_meta("file_tenants", json.dumps(tenants))


def _take_report(
    state: ControllerState, wire: WireServer, tenancy: Tenancy, happened: asyncio.Event, report: Report
) -> None:
    if report.tenants:
        tenancy.usage.report(report, time.time())
        _keep_usage(tenancy, wire)
    state.demand.report(report, asyncio.get_running_loop().time())
    state.outcomes.report(report)
    if any(r.phase is Phase.DRAINING and wire.drained(r.name) for r in state.replicas.values()):
        happened.set()


def _keep_usage(tenancy: Tenancy, wire: WireServer) -> None:
    try:
        tenancy.keep([w.hello.epoch for w in wire.workers.values()], time.time())
    except sqlite3.Error as error:
        log.warning("what tenants used cannot be recorded: %s; trying again", error)


def _wake(state: ControllerState, happened: asyncio.Event, model: str) -> None:
    entry = state.models.get(model)
    if entry is not None:
        entry.woken = True
        happened.set()


async def _stop_replicas(parts: _Parts, asked: asyncio.Queue[int]) -> None:
    """Stop every replica, SIGTERM before SIGKILL; a second signal ends the wait."""
    parts.loop.begin_stop(time.time())
    hasten = asyncio.create_task(asked.get())
    gone = asyncio.create_task(parts.loop.emptied.wait())
    await asyncio.wait({hasten, gone}, return_when=asyncio.FIRST_COMPLETED)
    for task in (hasten, gone):
        task.cancel()


async def _serve_admin(address: str, app: web.Application) -> web.AppRunner:
    host, _, port = address.rpartition(":")
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]"), int(port)).start()
    except OSError as error:
        await runner.cleanup()
        raise Unusable(f"--admin {address}: cannot listen: {os.strerror(error.errno or 0)}") from error
    return runner


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


async def _keep_house(paths: StatePaths, workers: int, wire: WireServer) -> None:
    """Rotate the logs of controller and gateway workers (the backend sees to the replicas'); keep the wire's socket."""
    while True:
        for role in ("controller", *(f"worker-{i}" for i in range(workers))):
            try:
                await asyncio.to_thread(rotate, paths.log(role))
            except OSError as error:
                log.warning("the log of %s cannot be rotated: %s", role, error.strerror)
        try:
            await wire.listen_again(paths.wire)
        except OSError as error:
            log.warning("no gateway worker can connect: %s: %s", paths.wire, error.strerror)
        await asyncio.sleep(HOUSE_S)


def _write_endpoints(paths: StatePaths, options: argparse.Namespace) -> None:
    text = json.dumps(
        {
            "gateway": f"{options.gateway_scheme}://{options.listen}",
            "admin": f"http://{options.admin}",
            "pid": os.getppid(),
        },
        indent=1,
    )
    part = paths.endpoints.with_suffix(".part")
    part.write_text(text + "\n")
    part.replace(paths.endpoints)


if __name__ == "__main__":
    sys.exit(main())

"""The command `tangram`: what there is to type, and no more; each command imports its part when it runs."""

from __future__ import annotations

import sys
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from tangram.cli.client import Client


class _Commands(TyperGroup):
    """Turns what went wrong into a line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        from tangram.cli.client import CommandError

        try:
            return super().invoke(ctx)
        except CommandError as error:
            for line in str(error).splitlines():
                typer.echo(f"error: {line}", err=True)
            raise typer.Exit(error.code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    name="tangram",
    cls=_Commands,
    help="Serve many inference models from few GPUs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Format(StrEnum):
    """Of `get`."""

    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class DataFormat(StrEnum):
    """Of everything else."""

    JSON = "json"
    YAML = "yaml"


State = Annotated[
    Path | None,
    typer.Option("--state", help="State directory.", envvar="TANGRAM_STATE_DIR", show_default=".tangram"),
]
Admin = Annotated[
    str | None,
    typer.Option(
        "--admin", help="HOST:PORT of the admin API, if not as the state directory says.", envvar="TANGRAM_ADMIN"
    ),
]
As = Annotated[DataFormat | None, typer.Option("-o", "--output", help="Print the data instead.")]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.0, help="Seconds to wait at most, with --wait.")]


@app.command(help="Run a fleet: gateway, controller and replicas, until Ctrl-C.")
def up(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with a Fleet and Models.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the gateway.")] = "127.0.0.1:8080",
    admin: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the admin API.")] = "127.0.0.1:8081",
    state: Annotated[Path, typer.Option(help="State directory.", envvar="TANGRAM_STATE_DIR")] = Path(".tangram"),
    workers: Annotated[int, typer.Option(min=1, max=64, help="Gateway workers.")] = 1,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write logs as JSON lines.")] = False,
    insecure_listen: Annotated[
        bool, typer.Option("--insecure-listen", help="Let other machines use the gateway without any key.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain (PEM) of the gateway.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key (PEM).")] = None,
    advise: Annotated[
        bool, typer.Option("--advise", help="Only say how many replicas there should be; no count changes by itself.")
    ] = False,
    no_fast_path: Annotated[
        bool, typer.Option("--no-fast-path", help="Parse every request in full, also those that are plain.")
    ] = False,
    no_native: Annotated[
        bool, typer.Option("--no-native", help="Run the gateway as plain Python, also where it has been compiled.")
    ] = False,
) -> None:
    from tangram.cli.up import UpOptions
    from tangram.cli.up import up as run

    run(
        UpOptions(
            file,
            listen,
            admin,
            state,
            workers,
            log_json,
            insecure_listen,
            tls_cert,
            tls_key,
            advise,
            no_fast_path,
            no_native,
        )
    )


@app.command(help="Stop what runs on a state directory, also what a killed supervisor left.")
def down(state: State = None) -> None:
    from tangram.cli.client import state_dir
    from tangram.cli.down import down as stop
    from tangram.control.paths import StatePaths

    stop(StatePaths(state_dir(state)), typer.echo)


@app.command(help="Show models, replicas, devices, tenants, decisions or events.")
def get(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="models, replicas, devices, tenants, decisions or events.")
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this one; for decisions and events, its model.")
    ] = None,
    output: Annotated[Format | None, typer.Option("-o", "--output", help="Instead of the plain table.")] = None,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on and show what changes.")] = False,
    model: Annotated[str | None, typer.Option("-m", "--model", help="Only what concerns this model.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=1000, help="How many decisions or events.")] = None,
    state: State = None,
    admin: Admin = None,
) -> None:
    import time

    from tangram.cli import show

    kind = show.kind_of(what)
    fetch = show.fetch_of(_client(state, admin), kind, name, model, limit)
    if not watch:
        typer.echo(show.get(fetch, kind, output, single=name is not None))
        return
    for text in show.watch(fetch, kind, output, sleep=time.sleep):
        typer.echo(text)


@app.command(help="Show all about one model.")
def describe(
    words: Annotated[list[str], typer.Argument(metavar="[model] NAME", help="The model.")],
    output: As = None,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import show

    typer.echo(show.describe(_client(state, admin), show.model_named(words), output))


@app.command(help="Tell why a model has this many replicas, and why there.")
def explain(name: ModelName, output: As = None, state: State = None, admin: Admin = None) -> None:
    from tangram.cli import show

    typer.echo(show.explain(_client(state, admin), show.model_named([name]), output))


@app.command(help="Show the installation as a whole.")
def status(output: As = None, state: State = None, admin: Admin = None) -> None:
    from tangram.cli import show

    typer.echo(show.status(_client(state, admin), output))


@app.command(help="Show what a replica wrote.")
def logs(
    replica: Annotated[str, typer.Argument(metavar="REPLICA", help="Name of the replica.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the replica is gone.")] = False,
    tail: Annotated[int, typer.Option(min=0, max=100_000, help="Begin with this many of the last lines.")] = 200,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import show

    for piece in show.logs(_client(state, admin), replica, tail=tail, follow=follow):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@app.command(help="Watch models, replicas and devices live.")
def top(
    once: Annotated[bool, typer.Option("--once", help="Draw once; always so where the output is no terminal.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    state: State = None,
    admin: Admin = None,
) -> None:
    from rich.console import Console

    from tangram.cli.top import top as draw

    console = Console()
    draw(_client(state, admin), console, once=once or not console.is_terminal, interval_s=interval)


@app.command("set", help="Change how a model scales; what is not given stays.")
def set_(
    name: ModelName,
    target_qps: Annotated[
        float | None, typer.Option("--target-qps", help="Requests a second that one replica should serve.")
    ] = None,
    min_replicas: Annotated[int | None, typer.Option("--min-replicas", min=0, help="At least so many.")] = None,
    max_replicas: Annotated[int | None, typer.Option("--max-replicas", min=1, help="At most so many.")] = None,
    replicas: Annotated[
        str | None, typer.Option("--replicas", metavar="N|auto", help="Exactly so many; auto ends that.")
    ] = None,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import change

    model = change.scale(
        _client(state, admin),
        name,
        target_qps=target_qps,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        replicas=replicas,
    )
    count = "auto" if model.fixed_replicas is None else str(model.fixed_replicas)
    target = "-" if model.target_qps is None else f"{model.target_qps:g}"
    typer.echo(
        f"model/{model.name} scaled: replicas {count}, range {model.min_replicas}-{model.max_replicas}, "
        f"target QPS {target}"
    )


@app.command(help="Create or change the models and the fleet that a file declares.")
def apply(
    file: Annotated[Path, typer.Option("-f", "--filename", metavar="FILE", help="YAML file.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the models serve as declared.")] = False,
    timeout: Timeout = 300.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and tell; change nothing.")] = False,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import change

    client = _client(state, admin)
    applied = change.apply(client, file, dry_run=dry_run)
    for item in applied:
        typer.echo(f"{item['kind'].lower()}/{item['name']} {item['change']}" + (" (dry run)" if dry_run else ""))
    if wait and not dry_run:
        names = [item["name"] for item in applied if item["kind"] == "Model"]
        change.wait_ready(client, names, timeout)
        typer.echo("all ready")


@app.command(help="Remove a model; its replicas finish what is in flight.")
def delete(
    name: ModelName,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until nothing of it is left.")] = False,
    timeout: Timeout = 300.0,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import change

    client = _client(state, admin)
    change.delete(client, name)
    if wait:
        change.wait_gone(client, name, timeout)
    typer.echo(f"model/{name} deleted")


keys = typer.Typer(name="key", help="Make, list and revoke API keys of tenants.", no_args_is_help=True)
app.add_typer(keys)


@keys.command("create", help="Make a key for a tenant and print it; it is shown this once.")
def key_create(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")],
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import key

    typer.echo(key.create(_client(state, admin), tenant).key)


@keys.command("list", help="Show the keys there are, without their secrets.")
def key_list(
    tenant: Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Only those of this one.")] = None,
    output: As = None,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import key, show

    found = key.listed(_client(state, admin), tenant)
    if output is not None:
        typer.echo(show.dump([k.model_dump(mode="json", by_alias=True) for k in found], output))
    else:
        typer.echo(key.table(found))


@keys.command("revoke", help="Make a key void.")
def key_revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `key list` shows it.")],
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import key

    key.revoke(_client(state, admin), id)
    typer.echo(f"key/{id} revoked")


@keys.command("generate", help="Make a key and its entry for a Tenant document, without a running Tangram.")
def key_generate() -> None:
    from tangram.cli import key

    made, entry = key.generate()
    typer.echo(f"{made}\n{entry}")


rollouts = typer.Typer(
    name="rollout", help="Show how a change of a model's process comes in, or take it back.", no_args_is_help=True
)
app.add_typer(rollouts)


@rollouts.command("status", help="Show how the last rollout stands, and the revisions on record.")
def rollout_status(
    name: ModelName,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended; fails unless it ended well.")] = False,
    timeout: Timeout = 300.0,
    output: As = None,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import rollout, show

    client = _client(state, admin)
    view = rollout.wait(client, name, timeout) if wait else rollout.status(client, name)
    if output is not None:
        typer.echo(show.dump(view.model_dump(mode="json", by_alias=True), output))
    else:
        typer.echo(rollout.text(view))


@rollouts.command("undo", help="Put the revision before, or the one named, in force again.")
def rollout_undo(
    name: ModelName,
    to_revision: Annotated[
        int | None, typer.Option("--to-revision", min=1, help="Number of the revision, as `rollout status` shows it.")
    ] = None,
    state: State = None,
    admin: Admin = None,
) -> None:
    from tangram.cli import rollout

    view = rollout.undo(_client(state, admin), name, to_revision)
    typer.echo(f"model/{name} goes back: {rollout.summary(view)}")


@app.command(help="Work out a placement without running anything.")
def pack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with a Fleet and Models.")],
    models: Annotated[
        str | None, typer.Option("--models", metavar="NAME=COUNT,...", help="Replicas of each model.")
    ] = None,
    output: As = None,
) -> None:
    from tangram.cli import pack as packing
    from tangram.cli import show

    view = packing.pack(file, packing.counts_of(models))
    if output is not None:
        typer.echo(show.dump(view.model_dump(mode="json", by_alias=True), output))
    else:
        typer.echo(packing.text(view, show.width()))


@app.command(help="Send a trace of request rates through the autoscaler on virtual time.")
def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE.csv", help="Requests per bin, a number a line.")],
    model: Annotated[str, typer.Option("--model", metavar="FILE#NAME", help="Whose policy is used.")],
    policy: Annotated[
        str, typer.Option("--policy", metavar="NAME,...", help="ours, hpa, kpa, ray, tpa, oracle.")
    ] = "ours",
    service: Annotated[float | None, typer.Option("--service", min=0.0001, help="Mean seconds of a request.")] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="Requests a replica does at once.")] = None,
    slo_wait: Annotated[float, typer.Option("--slo-wait", min=0.0, help="Seconds of waiting that are too long.")] = 1.0,
    start: Annotated[float, typer.Option("--start", min=0.0, help="Seconds until a replica is ready.")] = 20.0,
    scale: Annotated[float, typer.Option("--scale", min=0.000001, help="Factor on the trace's rates.")] = 1.0,
    bins: Annotated[str, typer.Option("--bins", metavar="FIRST..LAST", help="Only these bins.")] = "",
    began: Annotated[
        datetime | None, typer.Option("--began", help="When the trace began (UTC), for the model's schedules.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of arrivals and service times.")] = 1,
    png: Annotated[Path | None, typer.Option("--png", help="Also draw a picture.")] = None,
    output: As = None,
) -> None:
    from tangram.cli import replay as replaying
    from tangram.cli import show

    options = replaying.ReplayOptions(
        trace,
        model,
        replaying.policies_of(policy),
        service_s=service,
        slots=slots,
        slo_wait_s=slo_wait,
        start_s=start,
        scale=scale,
        bins=bins,
        began=began,
        seed=seed,
    )
    workload, runs = replaying.run(options)
    if png is not None:
        replaying.picture(workload, runs, png)
    if output is not None:
        typer.echo(show.dump([one.figures() for one in runs], output))
    else:
        typer.echo(replaying.text(workload, runs, show.width()))


@app.command(help="Print the version.")
def version() -> None:
    from tangram import __version__

    typer.echo(f"tangram {__version__}")


def _client(state: Path | None, admin: str | None) -> Client:
    from tangram.cli.client import connect

    return connect(state, admin)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()

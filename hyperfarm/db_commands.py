"""`hyperfarm db`: the private MongoDB of this machine, for people who have none."""

from __future__ import annotations

import json

import click


def _announce(line: str) -> None:
    click.echo(line, err=True)


@click.group()
def db() -> None:
    """A private MongoDB on this machine: start, stop, status.

    It listens on the loopback address only and asks for no password, so it is for one machine. With workers
    on other hosts use the MongoDB of docker-compose.yml or your own.

    \b
    Example:
      hyperfarm db start
    """


@db.command()
def start() -> None:
    """Start it, so that it stays until `hyperfarm db stop`; print its URL.

    A mongod is taken from HYPERFARM_MONGOD, from PATH, or fetched once (45 MB, Linux x86-64). The data stays
    in your data folder (or in HYPERFARM_DATA) over stops and restarts.

    \b
    Example:
      hyperfarm db start
      export HYPERFARM_DATA=/scratch/me && hyperfarm db start
    """
    from hyperfarm import embedded

    before = embedded.status()
    server = embedded.start(persistent=True, announce=_announce)
    if before is not None and before.pid == server.pid:
        stays = "" if before.persistent else "; it now stays until `hyperfarm db stop`"
        _announce(f"The private MongoDB is running already (process {server.pid}){stays}.")
    else:
        _announce(f"MongoDB {server.version} started (process {server.pid}), data in {server.data_dir}.")
    click.echo(server.url)


@db.command()
@click.option("--force", is_flag=True, help="Stop it also while a hyperfarm is using it.")
def stop(force: bool) -> None:
    """Stop it; the data stays.

    \b
    Example:
      hyperfarm db stop
    """
    from hyperfarm import embedded

    stopped = embedded.stop(force=force)
    click.echo("The private MongoDB is stopped." if stopped else "The private MongoDB is not running.")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def status(as_json: bool) -> None:
    """Say whether it runs, where its data is, and its URL.

    \b
    Example:
      hyperfarm db status --json
    """
    from hyperfarm import embedded

    server = embedded.status()
    if as_json:
        told: dict[str, object] = {"running": server is not None, "data_dir": str(embedded.data_dir())}
        if server is not None:
            told.update(url=server.url, port=server.port, pid=server.pid)
            told.update(version=server.version, persistent=server.persistent)
        click.echo(json.dumps(told))
    elif server is None:
        click.echo(f"The private MongoDB is not running (its data: {embedded.data_dir()}).")
    else:
        stays = "stays until `hyperfarm db stop`" if server.persistent else "stops with its last user"
        click.echo(
            f"MongoDB {server.version} runs (process {server.pid}, {stays}), data in {server.data_dir}."
        )
        click.echo(server.url)

"""What `hyperfarm hosts` prints."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from hyperfarm.deploy.fleet import Row
from hyperfarm.deploy.hosts_file import Host
from hyperfarm.deploy.up import Wish, command

COLUMNS = ("slots", "devices", "python", "versions")


def progress(row: Row) -> None:
    """One line as soon as a host is done."""
    click.echo(
        f"{row.host.name}: {row.state}" + (f": {row.text}" if row.text and not row.ok else ""), err=True
    )


def table(rows: Sequence[Row]) -> None:
    """One row for each host, and a sentence about all."""
    columns = [name for name in COLUMNS if any(name in row.facts for row in rows)]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("host", "state", *columns, ""):
        shown.add_column("hyperfarm" if name == "versions" else name, overflow="fold")
    for row in rows:
        facts = [str(row.facts.get(name, "")) for name in columns]
        shown.add_row(row.host.name, row.state, *facts, row.text)
    Console(highlight=False, markup=False).print(shown)
    good = sum(row.ok for row in rows)
    click.echo(f"{good} of {len(rows)} hosts")


def outputs(rows: Sequence[Row]) -> None:
    """What each host said, under its name."""
    for row in rows:
        click.echo(f"==> {row.host.name}: {row.state}")
        if row.text:
            click.echo(row.text)


def plan(hosts: Sequence[Host], wish: Wish) -> None:
    """Each host as it is understood."""
    for host in hosts:
        argv, _ = command(host, wish)
        words = " ".join(word.replace("{folder}", f"~/{host.workdir}") for word in argv)
        over = f" over {host.jump}" if host.jump else ""
        click.echo(f"{host.name}{over}: {words}")

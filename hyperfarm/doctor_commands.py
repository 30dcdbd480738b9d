"""`hyperfarm doctor`: is everything there that a farm needs, and what to do if not."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from hyperfarm.cli_options import mongo_option

if TYPE_CHECKING:
    from hyperfarm.doctor import Check

EXIT_PROBLEM = 1
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@mongo_option
@click.option("--json", "as_json", is_flag=True, help="Print a list of {name, status, text, advice}.")
def doctor(mongo: str | None, as_json: bool) -> None:
    """Check the database, the workers, the trials and this host, and say what to do.

    Each line is ok, a warning (the farm works), or a problem. It changes nothing. Exit code: 0 without
    problems, 1 with one, 2 when the command itself makes no sense.

    \b
    Example:
      hyperfarm doctor
      hyperfarm doctor --mongo mongodb://db.example.org/farm --json
    """
    from hyperfarm.doctor import Status
    from hyperfarm.doctor_rounds import examine

    found = []
    for check in examine(mongo):
        found.append(check)
        if not as_json:
            _print(check)
    if as_json:
        told = [
            {"name": one.name, "status": one.status.value, "text": one.text, "advice": one.advice}
            for one in found
        ]
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    if any(check.status is Status.PROBLEM for check in found):
        sys.exit(EXIT_PROBLEM)


def _print(check: Check) -> None:
    status = click.style(f"{check.status.value:<8}", fg=COLOURS[check.status.value])
    click.echo(f"{status} {check.name:<15}  {check.text}")
    if check.advice:
        click.echo(f"{'':<8} {'':<15}  -> {check.advice}")

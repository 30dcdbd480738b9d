"""`hyperfarm gc`: what nothing refers to any more is shown, and removed on request."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hyperfarm.cli_options import mongo_option, no_such_experiment, open_store
from hyperfarm.errors import UsageError
from hyperfarm.garbage_kinds import OLDER_THAN_S, UNFENCED_S

if TYPE_CHECKING:
    from hyperfarm.garbage_kinds import Row
    from hyperfarm.store import Store

NAMES = {
    "model": "models",
    "artifact": "saved files",
    "log": "outputs of trials",
    "checkpoint": "checkpoints",
    "value": "parts of results",
    "result": "results",
    "bundle": "code",
    "attachment": "attachments",
    "upload": "broken uploads",
    "report": "reports",
    "worker": "silent workers",
}


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"--older-than is {value!r}; it must be a number of seconds, 0 or more")
    return seconds


@click.command()
@click.option("--delete", is_flag=True, help="Remove it (default: only show it).")
@click.option("--older-than", "older_than_s", metavar="SECONDS", default=f"{OLDER_THAN_S:.0f}", callback=_seconds,
              show_default=True, help="Leave alone what is younger; 0: whatever its age.")  # fmt: skip
@click.option("--exp-key", default=None, help="Only what belonged to this experiment.")
@mongo_option
@click.option("--json", "as_json", is_flag=True, help="Print strict JSON, for programs.")
def gc(delete: bool, older_than_s: float, exp_key: str | None, mongo: str | None, as_json: bool) -> None:
    """Show what nothing refers to any more, and remove it with --delete.

    Crashed workers leave it: files, logs and checkpoints of attempts that came to nothing, uploads that broke
    off, reports that no reader sees, workers that fell silent a day ago. What belongs to a trial that runs,
    and hyperopt's own attachments, are left alone; farms in use need not stop for it.

    Ages are told by the clocks of the hosts that made the things, so leave some time for wrong clocks: 0 is
    for a farm where nothing runs.

    \b
    Example:
      hyperfarm gc
      hyperfarm gc --delete
      hyperfarm gc --exp-key digits --older-than 86400 --json
    """
    from hyperfarm.garbage import collecting

    with open_store(mongo) as store:
        keys = None if exp_key is None else _keys(exp_key)
        with collecting(store, older_than_s=older_than_s, exp_keys=keys) as collector:
            found = collector.look()
            if exp_key is not None and not (found.rows() or found.waiting_rows()):
                _check_known(store, exp_key)
            told = (collector.remove(found) if delete else found).rows()
    if as_json:
        _print_json(told, found.waiting_rows(), removed=delete, older_than_s=older_than_s)
        return
    age = f", at least {older_than_s:g} s old," if older_than_s else ""
    _print_rows(told)
    if not told:
        click.echo(f"There is nothing{age} that nothing refers to.")
    elif delete:
        click.echo(f"Removed: {_total(told)}.")
    else:
        click.echo(f"{_total(told)}{age} that nothing refers to.")
        click.echo(f"Remove it: {_command(older_than_s, exp_key, mongo)}")
    if found.waiting:
        click.echo(
            f"Left alone for now: {_total(found.waiting_rows())} that may be in the making; look again when no "
            f"trial runs, or in {UNFENCED_S / 60:.0f} minutes."
        )


def _keys(name: str) -> list[str | None]:
    """The exp_keys that a person means: jobs without one are called None."""
    return [name, None] if name == "None" else [name]


def _check_known(store: Store, name: str) -> None:
    known = {doc["_id"] for doc in store.experiments()} | {row["_id"] for row in store.summaries()}
    if not known.intersection(_keys(name)):
        raise no_such_experiment(name, known)


def _print_json(told: Sequence[Row], waiting: Sequence[Row], *, removed: bool, older_than_s: float) -> None:
    document = {
        "removed": removed,
        "older_than_s": older_than_s,
        "count": sum(row.number for row in told),
        "bytes": sum(row.size for row in told),
        "items": [_item(row) for row in told],
        "left_alone": [_item(row) for row in waiting],
    }
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _item(row: Row) -> dict[str, Any]:
    """What belongs to no experiment has no `exp_key`; null is the experiment without a name."""
    owner = {} if row.exp_key == "" else {"exp_key": row.exp_key}
    return {"what": row.what, **owner, "count": row.number, "bytes": row.size}


def _print_rows(rows: Sequence[Row]) -> None:
    owners = ["-" if row.exp_key == "" else str(row.exp_key) for row in rows]
    width = max(map(len, owners), default=0)
    for owner, row in zip(owners, rows, strict=True):
        size = _size(row.size) if row.size else ""
        name = NAMES.get(row.what, row.what)
        click.echo(f"{owner:<{width}}  {name:<17}  {row.number:>7}  {size:>10}".rstrip())


def _total(rows: Sequence[Row]) -> str:
    count = sum(row.number for row in rows)
    size = sum(row.size for row in rows)
    return f"{count} thing{'' if count == 1 else 's'}" + (f" ({_size(size)})" if size else "")


def _size(count: int) -> str:
    amount, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.3g} {unit}"


def _command(older_than_s: float, exp_key: str | None, mongo: str | None) -> str:
    from hyperfarm.mongo import hide_password

    words = ["hyperfarm", "gc", "--delete"]
    words += ["--older-than", f"{older_than_s:g}"] if older_than_s != OLDER_THAN_S else []
    words += ["--exp-key", exp_key] if exp_key is not None else []
    words += ["--mongo", hide_password(mongo)] if mongo else []
    return shlex.join(words)

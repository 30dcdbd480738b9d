"""What the subcommands share: the option --mongo, and opening the database that is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hyperfarm import settings
from hyperfarm.errors import ExperimentNotFound, UsageError
from hyperfarm.retry import PATIENCE_S

if TYPE_CHECKING:
    from hyperfarm.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])

mongo_option = click.option(
    "--mongo",
    metavar="URL",
    default=None,
    help="mongodb://... or mongo://host:port/db/jobs (default: HYPERFARM_MONGO, else a private database).",
)


def parse_bytes(value: object) -> int:
    """Return a number of bytes, given as such or as people write it: 500M, 2G, 1.5GB (powers of 1024).

    Raises UsageError.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(value).lower())
    size = 0 if found is None else int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))
    if size < 1:
        raise UsageError(f"{value!r} is not a size of memory; write a number of bytes, 500M or 2G")
    return size


def parse_keep_models(value: int | str | None) -> int | None:
    """Return how many models are kept, None for all. Takes N, "all", "none". Raises UsageError."""
    if value is None or value == "all":
        return None
    if value == "none":
        return 0
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"keep_models is {value!r}; write a number, all, or none") from None


def patience_option(command: Command) -> Command:
    """How long MongoDB may be away."""
    return click.option(
        "--patience",
        "patience_s",
        type=click.FloatRange(0),
        default=PATIENCE_S,
        show_default=True,
        help="Seconds to wait for a MongoDB that is away.",
    )(command)


def trial_limit_options(command: Command) -> Command:
    """What a trial may take."""
    command = click.option(
        "--trial-memory",
        metavar="SIZE",
        default=None,
        callback=lambda _ctx, _param, value: None if value is None else parse_bytes(value),
        help="Memory that a trial's processes may hold together, as 500M or 2G; past it the trial fails.",
    )(command)
    return click.option(
        "--trial-timeout",
        "trial_timeout_s",
        type=click.FloatRange(0, min_open=True),
        default=None,
        help="Seconds that a trial may run; past it the trial fails.",
    )(command)


def announce(text: str) -> None:
    """Say on standard error what takes a moment."""
    click.echo(text, err=True)


@contextmanager
def database_url(mongo: str | None) -> Iterator[str]:
    """The URL that is meant; the private database runs at least as long as the block."""
    url = settings.mongo_url(mongo)
    if url is not None:
        yield url
        return
    from hyperfarm import embedded

    with embedded.running(announce) as private:
        yield private


@contextmanager
def open_store(mongo: str | None) -> Iterator[Store]:
    """The store that is meant, open during the block."""
    from hyperfarm.store import Store

    with database_url(mongo) as url:
        store = Store.open(url)
        try:
            yield store
        finally:
            store.close()


def no_such_experiment(exp_key: str, known: Iterable[str | None]) -> ExperimentNotFound:
    """The error for an unknown exp_key, with the names that look like it."""
    names = sorted(name for name in known if name is not None)
    near = difflib.get_close_matches(exp_key, names, n=3, cutoff=0.5)
    if near:
        hint = "did you mean " + " or ".join(near) + "?"
    elif names:
        hint = "there are: " + ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    else:
        hint = "there are no experiments in this database yet"
    return ExperimentNotFound(f"no experiment is called {exp_key!r}; {hint}")

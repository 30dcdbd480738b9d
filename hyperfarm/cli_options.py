"""What the subcommands share: the option --mongo, and opening the database that is meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hyperfarm import settings
from hyperfarm.errors import ExperimentNotFound

if TYPE_CHECKING:
    from hyperfarm.store import Store

mongo_option = click.option(
    "--mongo",
    metavar="URL",
    default=None,
    help="mongodb://... or mongo://host:port/db/jobs (default: HYPERFARM_MONGO, else a private database).",
)


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

"""Many hosts at once: each is worked on by itself, and what goes wrong on one is its own row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gevent import get_hub
from gevent.pool import Pool

from hyperfarm.deploy.connection import Connection
from hyperfarm.deploy.hosts_file import Host
from hyperfarm.deploy.ssh_config import route
from hyperfarm.errors import HyperfarmError

ALL, SOME, NONE = 0, 3, 4
"""Exit codes: it worked on all hosts, on some, on none."""
PARALLEL = 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one host: `state` in a word or two, `text` for more, `facts` for the table."""

    host: Host
    ok: bool
    state: str
    text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


Work = Callable[[Host, Connection], Row]


def each(
    hosts: Sequence[Host],
    work: Work,
    *,
    parallel: int = PARALLEL,
    password: str | None = None,
    tell: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Do `work` on every host, up to `parallel` at a time; return a row each, in the hosts' order.

    `tell` hears of each row when it is there. An error on one host is its row and nobody else's.
    """
    return _spread(hosts, lambda host: _connected(host, work, password), parallel, tell)


def without_login(
    hosts: Sequence[Host], work: Callable[[Host], Row], *, parallel: int = PARALLEL
) -> list[Row]:
    """Like `each`, for work that makes its own connections."""
    return _spread(hosts, work, parallel, lambda row: None)


def _spread(
    hosts: Sequence[Host], work: Callable[[Host], Row], parallel: int, tell: Callable[[Row], None]
) -> list[Row]:
    get_hub().threadpool.maxsize = max(10, min(parallel, len(hosts)))

    def one(host: Host) -> Row:
        row = _guarded(host, lambda: work(host))
        tell(row)
        return row

    return list(Pool(parallel).imap(one, hosts))


def _connected(host: Host, work: Work, password: str | None) -> Row:
    with Connection(route(host.address, host.jump), password=password) as connection:
        return work(host, connection)


def _guarded(host: Host, call: Callable[[], Row]) -> Row:
    try:
        return call()
    except HyperfarmError as error:
        return Row(host=host, ok=False, state="failed", text=str(error))
    except Exception as error:
        if os.environ.get("HYPERFARM_DEBUG"):
            raise
        return Row(host=host, ok=False, state="failed", text=f"an error of hyperfarm's own: {error!r}")


def exit_code(rows: Iterable[Row]) -> int:
    """0 when all went well, 3 when some did, 4 when none did."""
    good = [row.ok for row in rows]
    if all(good):
        return ALL
    return SOME if any(good) else NONE

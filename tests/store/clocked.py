"""A store whose clock is in the test's hand; every statement still runs in the real database."""

from __future__ import annotations

import datetime as dt

from pymongo import WriteConcern

from hyperfarm.store import Store

START = dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc)
MS = dt.timedelta(milliseconds=1)


class ClockedStore(Store):
    """What else asks the database's clock asks `time`: whole milliseconds, moved by the test alone.

    Only `$currentDate` (the field refresh_time, about which nothing is decided) still shows the real time.
    """

    def __init__(self, like: Store) -> None:
        # A replica set of one: its own word is the majority's, only sooner.
        super().__init__(like.database.with_options(write_concern=WriteConcern(1)))
        self.time = START

    @property
    def clock(self) -> object:  # type: ignore[override]
        return self.time

    def now(self) -> dt.datetime:
        return self.time

    def advance(self, milliseconds: int) -> None:
        self.time += milliseconds * MS

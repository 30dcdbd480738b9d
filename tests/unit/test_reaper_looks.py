"""The second look: no lease of a living worker is taken back, whatever kept the database away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyperfarm import reaping, retry
from hyperfarm.errors import DatabaseUnavailable
from hyperfarm.reaping import Reaper

SECOND_LOOK_S = 8.0
TOKENS = st.sampled_from(["a", "b", "c"])


class Leases:
    """The expired leases of a farm, by token; stands where the store's `reap` stands."""

    def __init__(self) -> None:
        self.expired: dict[str, int] = {}
        self.away = False

    def reap(self, is_due: Callable[[dict[str, Any]], bool]) -> list[tuple[dict[str, Any], str]]:
        reaped = []
        for token, expires in sorted(self.expired.items()):
            if self.away and token != "a":  # Gone in the middle of the look.
                raise DatabaseUnavailable("away")
            doc = {"lease": {"token": token, "expires": expires}}
            if is_due(doc):
                reaped.append((doc, "requeue"))
        if self.away:
            raise DatabaseUnavailable("away")
        return reaped

    def without_lease(self) -> list[dict[str, Any]]:
        return []

    def unpark(self, unclaimed_s: float) -> int:
        return 0


class Observer(RuleBasedStateMachine):
    """What one observer reaps had been expired, the same, and seen so without a break, for the whole time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.ends = 0.0, 0
        self.leases = Leases()
        self.reaper = Reaper(self.leases, lambda: self.now)
        self.since: dict[str, float] = {}

    @rule(seconds=st.sampled_from([0.0, 0.125, 5.0, SECOND_LOOK_S - 0.125, SECOND_LOOK_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(token=TOKENS)
    def expire(self, token: str) -> None:
        """A lease ends; or one that had ended was renewed and has ended again."""
        self.ends += 1
        self.leases.expired[token] = self.ends
        self.since.pop(token, None)

    @rule(token=TOKENS)
    def renew(self, token: str) -> None:
        self.leases.expired.pop(token, None)
        self.since.pop(token, None)

    @rule()
    def look(self) -> None:
        self.leases.away = False
        for token in self.leases.expired:
            self.since.setdefault(token, self.now)
        due = [token for token, since in sorted(self.since.items()) if self.now - since >= SECOND_LOOK_S]
        assert [doc["lease"]["token"] for doc, _ in self.reaper.look()] == due
        for token in due:
            del self.leases.expired[token], self.since[token]

    @rule()
    def look_in_vain(self) -> None:
        self.leases.away = True
        with pytest.raises(DatabaseUnavailable):
            self.reaper.look()
        self.since.clear()

    @invariant()
    def it_remembers_no_more_than_there_is(self) -> None:
        assert len(self.reaper._first_seen) <= 3


TestObserver = Observer.TestCase
TestObserver.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_holder_that_waits_for_the_database_tries_again_within_the_second_look() -> None:
    """A renewal pauses for so long between two tries; then it has to be sent and to arrive."""
    longest_pause_s = retry.LONGEST_PAUSE_S + retry.SLICE_S
    assert reaping.SECOND_LOOK_S == SECOND_LOOK_S
    assert longest_pause_s + 2.0 <= SECOND_LOOK_S

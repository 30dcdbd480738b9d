"""Which experiment a free slot serves next: in the long run all get the same time, whatever their trials take."""

from __future__ import annotations

import heapq
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfarm.worker.fairness import MIN_STAY_S, STAY_FACTOR, FairShare

NOTHING = "nothing yet"


class Host:
    """Slots that serve experiments whose trials take a known time; `now` is simulated seconds."""

    def __init__(self, slots: int, startup_s: float = 0.0) -> None:
        self.shares, self.startup_s = FairShare(), startup_s
        self.ends: list[tuple[float, int, Any, float]] = [(0.0, slot, NOTHING, 0.0) for slot in range(slots)]
        self.loaded: dict[int, Any] = dict.fromkeys(range(slots), NOTHING)
        self.served: dict[str | None, float] = {}
        self.switches = 0

    def run(self, until: float, takes: dict[str | None, float]) -> None:
        """Serve `takes` (seconds of one trial, by experiment; all always have jobs waiting)."""
        while self.ends[0][0] < until:
            now, slot, ended, seconds = heapq.heappop(self.ends)
            if ended is not NOTHING:
                self.shares.charge(ended, seconds)
                self.served[ended] = self.served.get(ended, 0.0) + seconds
            loaded = self.loaded[slot]
            key = self.shares.order(takes, loaded=loaded, startup_s=self.startup_s)[0]
            self.switches += loaded != key
            seconds = takes[key] + (self.startup_s if loaded != key else 0.0)
            self.loaded[slot] = key
            self.shares.begin(key)
            heapq.heappush(self.ends, (now + seconds, slot, key, seconds))

    def share(self, key: str | None) -> float:
        return self.served.get(key, 0.0)


@pytest.mark.parametrize("slots", [1, 3])
@settings(max_examples=40, deadline=None)
@given(first=st.floats(0.5, 50), second=st.floats(0.5, 50), startup_s=st.floats(0, 5))
def test_two_experiments_share_a_host_evenly_in_time(
    slots: int, first: float, second: float, startup_s: float
) -> None:
    host = Host(slots, startup_s)
    host.run(1000, {"a": first, "b": second})
    stay = max(MIN_STAY_S, STAY_FACTOR * startup_s)
    longest = max(first, second) + startup_s
    assert abs(host.share("a") - host.share("b")) <= stay + 2 * slots * longest


def test_many_experiments_share_too() -> None:
    host = Host(4)
    host.run(5000, {"a": 1.0, "b": 10.0, "c": 3.0, None: 0.5, "d": 30.0})
    shares = [host.share(key) for key in ("a", "b", "c", None, "d")]
    assert max(shares) - min(shares) <= 4 * 30 + MIN_STAY_S


def test_a_newcomer_has_no_claim_on_the_past() -> None:
    host = Host(1)
    host.run(10_000, {"old": 10.0})
    before = host.share("old")
    host.run(11_000, {"old": 10.0, "new": 10.0})
    assert abs((host.share("old") - before) - host.share("new")) <= 20


def test_a_newcomer_starts_level_not_a_head_start_behind() -> None:
    shares = FairShare()
    for _ in range(2):
        shares.order(["old"], loaded="old", startup_s=20.0)
        shares.begin("old")
        shares.charge("old", 1000.0)
    assert shares.order(["old", "new"], loaded="old", startup_s=20.0) == ["old", "new"]
    shares.charge("old", STAY_FACTOR * 20.0 - 1.0)
    assert shares.order(["old", "new"], loaded="old", startup_s=20.0) == ["old", "new"]
    shares.charge("old", 2.0)
    assert shares.order(["old", "new"], loaded="old", startup_s=20.0) == ["new", "old"]


def test_a_newcomer_has_none_either_when_it_comes_while_the_other_pauses() -> None:
    host = Host(1)
    host.run(10_000, {"old": 10.0})
    host.run(10_010, {"new": 10.0})
    before, young = host.share("old"), host.share("new")
    host.run(12_000, {"old": 10.0, "new": 10.0})
    assert abs((host.share("old") - before) - (host.share("new") - young)) <= 30


def test_who_was_away_does_not_make_up_for_it() -> None:
    host = Host(1)
    host.run(1000, {"a": 10.0, "b": 10.0})
    host.run(9000, {"a": 10.0})
    a, b = host.share("a"), host.share("b")
    host.run(10_000, {"a": 10.0, "b": 10.0})
    assert abs((host.share("a") - a) - (host.share("b") - b)) <= 30


def test_who_waits_all_the_time_keeps_its_claim() -> None:
    """One long trial of the other does not wipe out what the waiting one is owed."""
    shares = FairShare()
    assert shares.order(["a", "b"], loaded=None, startup_s=0.0) == ["a", "b"]
    shares.begin("a")
    shares.charge("a", 500.0)
    for _ in range(49):
        assert shares.order(["a", "b"], loaded="a", startup_s=0.0)[0] == "b"
        shares.begin("b")
        shares.charge("b", 10.0)


def test_a_slot_stays_with_the_loaded_code_within_the_head_start() -> None:
    shares = FairShare()
    shares.order(["a", "b"], loaded=None, startup_s=0.0)
    shares.charge("a", STAY_FACTOR * 2.0 - 0.1)
    assert shares.order(["a", "b"], loaded="a", startup_s=2.0) == ["a", "b"]
    assert shares.order(["a", "b"], loaded="b", startup_s=2.0) == ["b", "a"]
    assert shares.order(["a", "b"], loaded=None, startup_s=2.0) == ["b", "a"]
    shares.charge("a", 0.2)
    assert shares.order(["a", "b"], loaded="a", startup_s=2.0) == ["b", "a"]


def test_a_slow_start_is_not_paid_at_every_trial() -> None:
    host = Host(1, startup_s=5.0)
    host.run(2000, {"a": 1.0, "b": 1.0})
    assert host.switches <= 2000 / (STAY_FACTOR * 5.0) + 2
    assert host.share("a") > 800
    assert host.share("b") > 800


def test_among_equals_the_one_served_longest_ago_goes_first() -> None:
    shares = FairShare()
    keys = ["a", "b", "c"]
    for expected in ("a", "b", "c", "a", "b", "c"):
        first = shares.order(keys, loaded=None, startup_s=0.0)[0]
        assert first == expected
        shares.begin(first)
    assert shares.order([], loaded="a", startup_s=0.0) == []
    assert shares.order(["z"], loaded=None, startup_s=0.0) == ["z"]

"""hyperopt's early_stop_fn with trials that end in any order, several at once, or without a loss."""

from __future__ import annotations

import datetime as dt
from typing import Any

from hyperopt.early_stop import no_progress_loss
from hypothesis import given
from hypothesis import strategies as st

from hyperfarm.controller.early_stop import EarlyStop

T0 = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)


def ended(tid: int, loss: float | None, at: int) -> dict[str, Any]:
    result = {"status": "fail"} if loss is None else {"status": "ok", "loss": loss}
    return {
        "tid": tid,
        "state": 2,
        "result": result,
        "exp_key": "k",
        "refresh_time": T0 + dt.timedelta(seconds=at),
    }


def running(tid: int) -> dict[str, Any]:
    return {"tid": tid, "state": 1, "result": {"status": "new"}, "exp_key": "k", "refresh_time": T0}


def one_by_one(losses: list[float], count: int) -> int | None:
    """After how many trials hyperopt's own loop, which runs them one by one, stops."""
    stop = EarlyStop(no_progress_loss(count), "k")
    docs = []
    for number, loss in enumerate(losses):
        docs.append(ended(number, loss, number))
        if stop.says_stop(docs):
            return number + 1
    return None


def test_it_is_called_once_for_each_trial_in_the_order_in_which_they_end() -> None:
    seen = []

    def watch(trials: Any, calls: int = 0) -> tuple[bool, list[int]]:
        seen.append((trials.trials[-1]["tid"], len(trials), calls, trials.best_trial["tid"]))
        return False, [calls + 1]

    stop = EarlyStop(watch, "k")
    docs = [ended(0, 3.0, 5), ended(1, 2.0, 4), running(2)]
    assert not stop.says_stop(docs)
    assert not stop.says_stop(docs)
    assert not stop.says_stop([*docs[:2], ended(2, float("nan"), 7), ended(3, None, 6), ended(4, 1.0, 8)])
    assert seen == [(1, 1, 0, 1), (0, 2, 1, 1), (4, 3, 2, 4)]


@given(
    st.lists(st.integers(0, 5).map(float), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 5),
    st.randoms(),
)
def test_it_stops_where_a_search_one_by_one_would_stop(
    losses: list[float], count: int, at_once: int, random: Any
) -> None:
    """Whatever the tids, how many end between two looks, and whether the search was begun anew."""
    tids = list(range(len(losses)))
    random.shuffle(tids)
    docs = [ended(tid, loss, at) for at, (tid, loss) in enumerate(zip(tids, losses, strict=True))]
    stop, stopped = EarlyStop(no_progress_loss(count), "k"), None
    for end in range(at_once, len(docs) + at_once, at_once):
        there = sorted(docs[:end], key=lambda doc: doc["tid"])
        if stop.says_stop(there):
            stopped = len(stop._trials)
            assert EarlyStop(no_progress_loss(count), "k").says_stop(there)
            break
    assert stopped == one_by_one(losses, count)

"""What goes into a job comes out again, whatever its keys and values; and the best job is the best."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperfarm.jobs import JobState
from hyperfarm.store import Store
from hyperfarm.values import encode_keys
from tests.making import KEY, claim, job, queue

ODD_KEYS = ["a.b", "$x", "a\0b", "%2E", "%25", "%", "", "..", "$", "a$b", "%00", "\0", "%252E", "_id", "é.ü"]
keys = st.sampled_from(ODD_KEYS) | st.text(alphabet=".$%\x00245E0ab", max_size=6)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.sampled_from(["$state", "$$NOW", "$tid", "a.b", ""])
    | st.binary(max_size=5)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(extra=st.dictionaries(keys.filter(lambda key: key not in ("status", "loss")), values, max_size=4))
def test_any_result_comes_back_as_it_was(store: Store, extra: dict[str, Any]) -> None:
    store.jobs.delete_many({})
    tid = queue(store)[0]
    result = {"status": "ok", "loss": 0.5, **extra}
    store.finish(claim(store), JobState.DONE, {"result": encode_keys(result)})
    for doc in (
        store.job(KEY, tid),
        store.best_job(KEY),
        *store.find_jobs(KEY),
        *store.jobs_by_tid(KEY, [tid]),
        *store.job_rows(KEY, ["result"]),
    ):
        assert doc is not None
        assert doc["result"] == result


@quick
@given(labels=st.lists(keys, min_size=1, max_size=4, unique=True))
def test_any_label_comes_back_as_it_was(store: Store, labels: list[str]) -> None:
    store.jobs.delete_many({})
    doc = job(0)
    doc["misc"] |= {"idxs": {label: [0] for label in labels}, "vals": {label: ["$state"] for label in labels}}
    store.insert_jobs([doc])
    held = claim(store)
    found = store.job(KEY, 0)
    assert found is not None
    assert held.doc["misc"] == found["misc"] == doc["misc"]


def test_values_of_a_user_are_stored_as_they_are(store: Store) -> None:
    queue(store)
    held = claim(store)
    result = {"status": "ok", "loss": 1.0, "note": "$state", "more": {"$x": "$$NOW", "list": ["$tid"]}}
    store.checkpoint(held, encode_keys({**result, "status": "running"}))
    assert store.job(KEY, held.tid)["result"] == {**result, "status": "running"}
    store.renew([held.lease.token], 60)
    store.finish(held, JobState.DONE, {"result": encode_keys(result)})
    assert store.job(KEY, held.tid)["result"] == result


def finish_with(store: Store, *losses: Any) -> list[int]:
    """One finished job for each loss, with the state DONE and the status 'ok'."""
    tids = store.new_tids(len(losses))
    docs = [
        job(tid, state=2, result={"status": "ok", "loss": loss})
        for tid, loss in zip(tids, losses, strict=True)
    ]
    store.insert_jobs(docs)
    return tids


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 1.0, 2.0], 1),
        ([math.nan, 5.0, math.nan], 1),
        ([math.inf, math.nan], 0),
        ([2.0, -math.inf, math.nan, 1.0], 1),
        ([2, 1, 1.0, 1], 1),
        ([None, 7.0], 1),
        ([math.nan], None),
        ([], None),
    ],
)
def test_the_best_job_has_the_lowest_loss(store: Store, losses: list[Any], best: int | None) -> None:
    # Better ones that do not count: a failed one, one that ended as an error, one of another experiment.
    store.insert_jobs(
        [
            job(1000, state=2, result={"status": "fail", "loss": -1e9}),
            job(1001, state=3, result={"status": "ok", "loss": -1e9}),
            job(1002, state=1, result={"status": "ok", "loss": -1e9}),
            job(1003, "other", state=2, result={"status": "ok", "loss": -1e9}),
        ]
    )
    tids = finish_with(store, *losses)
    found = store.best_job(KEY)
    assert (None if found is None else found["tid"]) == (None if best is None else tids[best])


def test_of_equal_losses_the_earliest_trial_is_best(store: Store) -> None:
    store.insert_jobs([job(tid, state=2, result={"status": "ok", "loss": 1.0}) for tid in (9, 3, 7)])
    assert store.best_job(KEY)["tid"] == 3


def test_the_recipes_own_query_finds_the_best_trial(store: Store) -> None:
    tids = finish_with(store, 3.0, 0.25, 2.0)
    queue(store)
    doc = store.jobs.find_one({"exp_key": KEY, "result.status": "ok"}, sort=[("result.loss", 1)])
    assert doc is not None
    assert (doc["tid"], doc["result"]["loss"]) == (tids[1], 0.25)


def test_readers_find_jobs_by_state_and_hide_what_they_do_not_want(store: Store) -> None:
    store.insert_jobs([job(tid, state=tid % 5, traceback="long") for tid in reversed(range(10))])
    store.insert_jobs([job(100, "other"), job(101, None)])
    assert [doc["tid"] for doc in store.find_jobs(KEY, [JobState.DONE, JobState.ERROR])] == [2, 3, 7, 8]
    assert [doc["tid"] for doc in store.find_jobs(None)] == [*range(10), 100, 101]
    assert all("traceback" not in doc for doc in store.find_jobs(KEY, hide=["traceback"]))
    assert set(store.job_rows(KEY, ["state"])[0]) == {"tid", "state"}
    assert {doc["tid"] for doc in store.jobs_by_tid(None, [1, 100, 101, 55])} == {1, 100, 101}
    assert set(store.job_versions(None)) == {(tid, 0, tid % 5) for tid in range(10)} | {
        (100, 0, 0),
        (101, 0, 0),
    }
    assert set(store.changed_jobs(None, [3], 99)) == {(3, 0, 3), (100, 0, 0), (101, 0, 0)}
    assert set(store.changed_jobs(KEY, [3], 7)) == {(3, 0, 3), (8, 0, 3), (9, 0, 4)}
    assert store.job("other", 1) is None

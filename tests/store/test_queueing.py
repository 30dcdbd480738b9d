"""Rule 8: a slot of the budget is taken by the job itself, so `max_evals` is exact whoever queues."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hyperfarm.errors import DatabaseError
from hyperfarm.jobs import JobState
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, job, queue, stored


def slotted(tid: int, slot: int, **fields: object) -> dict:
    return job(tid, slot=slot, attempt=0, max_attempts=3, **fields)


def test_two_controllers_fill_the_budget_exactly(store: Store, mongo_url: str) -> None:
    max_evals = 100
    ready = threading.Barrier(2)

    def control(_: int) -> set[int]:
        own = Store.open(mongo_url)
        inserted: set[int] = set()
        ready.wait(timeout=30)
        for start in range(0, max_evals, 10):
            tids = own.new_tids(10)
            docs = [slotted(tid, start + n) for n, tid in enumerate(tids)]
            inserted |= own.insert_jobs(docs)
        own.close()
        return inserted

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(control, range(2))
    assert first.isdisjoint(second)
    docs = list(store.jobs.find())
    assert {doc["tid"] for doc in docs} == first | second
    assert sorted(doc["slot"] for doc in docs) == list(range(max_evals))


def test_a_taken_slot_loses_that_job_alone(store: Store) -> None:
    assert store.insert_jobs([slotted(0, 5)]) == {0}
    docs = [slotted(10, 4), slotted(11, 5), slotted(12, 6)]
    assert store.insert_jobs(docs) == {10, 12}
    assert sorted(doc["tid"] for doc in store.jobs.find()) == [0, 10, 12]
    assert store.insert_jobs([slotted(13, 5, exp_key="other")]) == {13}
    assert store.insert_jobs([job(14), job(15)]) == {14, 15}, "jobs of a foreign fmin have no slot"
    assert store.insert_jobs([]) == set()


def test_jobs_of_unknown_outcome_sent_again_are_inserted_once(store: Store) -> None:
    docs = [slotted(tid, tid) for tid in range(4)]
    assert store.insert_jobs(docs[:2]) == {0, 1}
    docs[0]["_id"], docs[1]["_id"] = (doc["_id"] for doc in store.jobs.find().sort("tid"))
    assert store.insert_jobs(docs) == {0, 1, 2, 3}
    held = claim(store)
    store.finish(held, JobState.DONE, OK)
    before = stored(store, held)
    assert store.insert_jobs(docs) == {0, 1, 2, 3}
    assert stored(store, held) == before
    assert store.jobs.count_documents({}) == 4


def test_a_refused_job_is_an_error_not_a_lost_slot(store: Store) -> None:
    store.database.command("collMod", "jobs", validator={"tid": {"$lt": 100}})
    try:
        with pytest.raises(DatabaseError, match="queueing jobs"):
            store.insert_jobs([slotted(0, 0), slotted(100, 1)])
    finally:
        store.database.command("collMod", "jobs", validator={})


def test_cancelling_frees_the_slots_of_unfinished_jobs(store: Store) -> None:
    queue(store, 3)
    queue(store, 1, "other")
    done, running = claim(store), claim(store)
    store.finish(done, JobState.DONE, OK)
    assert store.cancel(KEY) == 2
    states = {doc["tid"]: doc for doc in store.jobs.find({"exp_key": KEY})}
    assert [states[tid]["state"] for tid in sorted(states)] == [2, 4, 4]
    assert states[done.tid]["slot"] == 0
    assert all("slot" not in doc and "lease" not in doc for doc in states.values() if doc["state"] == 4)
    assert store.job(KEY, running.tid)["owner"] is None
    assert store.insert_jobs([slotted(1000, 1), slotted(1001, 2), slotted(1002, 0)]) == {1000, 1001}
    assert store.jobs.count_documents({"exp_key": "other", "state": 0}) == 1
    assert store.cancel("nobody") == 0


def test_withdrawing_deletes_only_what_nobody_has_begun(store: Store) -> None:
    queue(store, 3)
    store.insert_jobs([job(100)])  # hyperopt's own fmin queued it
    tried, running = claim(store), claim(store)
    store.end_attempt(tried, "died")
    queue(store, 1, "other")
    assert store.withdraw_queued(KEY) == 1
    left = {doc["tid"] for doc in store.jobs.find({"exp_key": KEY})}
    assert left == {tried.tid, running.tid, 100}
    assert store.jobs.count_documents({"exp_key": "other"}) == 1
    assert store.insert_jobs([slotted(1000, 2)]) == {1000}


def test_a_deleted_job_frees_its_slot(store: Store) -> None:
    queue(store, 1)
    assert store.insert_jobs([slotted(1000, 0)]) == set()
    assert store.remove_jobs(KEY) == (1, 1)
    assert store.insert_jobs([slotted(1001, 0)]) == {1001}


def test_trial_ids_are_unique_from_the_very_first_on(store: Store, mongo_url: str) -> None:
    others = [Store.open(mongo_url) for _ in range(8)]
    for other in others:
        other.now()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            store.job_ids.delete_many({})
            ready = threading.Barrier(8)

            def reserve(own: Store, ready: threading.Barrier = ready) -> list[int]:
                ready.wait(timeout=30)
                return own.new_tids(1) + own.new_tids(3)

            tids = [tid for some in pool.map(reserve, others) for tid in some]
            assert sorted(tids) == list(range(32))
            assert store.job_ids.count_documents({}) == 1
    for other in others:
        other.close()


def test_who_loses_the_race_for_the_first_trial_id_asks_again(store: Store) -> None:
    admin, point = store.database.client.admin, ("configureFailPoint", "failCommand")
    which = {"keyPattern": {"a": 1}, "keyValue": {"a": 0}}
    lost = {"failCommands": ["findAndModify"], "errorCode": 11000, "errorExtraInfo": which}
    admin.command(*point, mode={"times": 2}, data=lost)
    try:
        assert store.new_tids(2) == [0, 1]
    finally:
        admin.command(*point, mode="off")


def test_the_counter_is_hyperopts(store: Store) -> None:
    store.job_ids.insert_one({"a": 0, "last_id": 7})
    assert store.new_tids(3) == [7, 8, 9]
    # As hyperopt.mongoexp reserves ids on the same document:
    before = store.job_ids.find_one_and_update({"a": 0}, {"$inc": {"last_id": 2}}, upsert=True)
    assert before is not None
    assert before["last_id"] == 10
    assert store.new_tids(1) == [12]


def test_an_experiment_is_created_once(store: Store) -> None:
    assert store.create_experiment({"_id": KEY, "state": "open", "seed": 1})
    assert not store.create_experiment({"_id": KEY, "state": "open", "seed": 2})
    doc = store.experiment(KEY)
    assert doc is not None
    assert doc["seed"] == 1
    assert abs((store.now() - doc["created"]).total_seconds()) < 60
    assert not store.update_experiment(KEY, {"seed": 3}, only_if={"state": "cancelled"})
    assert store.update_experiment(KEY, {"state": "cancelled"}, only_if={"state": "open"})
    assert store.experiment(KEY)["state"] == "cancelled"
    store.create_experiment({"_id": "b"})
    assert [doc["_id"] for doc in store.experiments()] == [KEY, "b"]
    assert [doc["_id"] for doc in store.experiments(["b", "c"])] == ["b"]
    assert store.remove_experiment(KEY)
    assert not store.remove_experiment(KEY)


def test_the_summary_counts_by_state_and_outcome(store: Store) -> None:
    nan = float("nan")
    results = [("ok", 3.0), ("ok", 1.5), ("fail", None)]
    docs = [job(n, state=2, result={"status": s, "loss": v}) for n, (s, v) in enumerate(results)]
    docs += [job(10, state=3, result={"status": "fail"}), job(11), job(12, state=1), job(13, state=4)]
    losses = (nan, 4.0)
    docs += [job(20 + n, "nan", state=2, result={"status": "ok", "loss": v}) for n, v in enumerate(losses)]
    store.insert_jobs(docs)
    rows = {row["_id"]: row for row in store.summaries()}
    got = {key: rows[KEY][key] for key in ("total", "new", "running", "done", "error", "cancelled")}
    assert got == {"total": 7, "new": 1, "running": 1, "done": 3, "error": 1, "cancelled": 1}
    assert (rows[KEY]["ok"], rows[KEY]["failed"], rows[KEY]["best"]) == (2, 2, 1.5)
    assert (rows["nan"]["ok"], rows["nan"]["best"]) == (2, 4.0), "NaN is never best"


def test_a_worker_lives_by_the_heartbeats_that_the_database_saw(store: Store) -> None:
    store.heartbeat("w1", {"host": "a", "slots": 2})
    store.heartbeat("w2", {"host": "b", "slots": 1})
    assert {doc["_id"] for doc in store.live_workers()} == {"w1", "w2"}
    store.workers_.update_one({"_id": "w2"}, [{"$set": {"heartbeat": {"$add": ["$$NOW", -101_000]}}}])
    assert [doc["_id"] for doc in store.live_workers()] == ["w1"]
    store.heartbeat("w2", {"slots": 3})
    assert {doc["_id"]: doc["slots"] for doc in store.live_workers()} == {"w1": 2, "w2": 3}
    store.unregister("w1")
    assert [doc["_id"] for doc in store.live_workers()] == ["w2"]

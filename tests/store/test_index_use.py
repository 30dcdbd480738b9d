"""Every statement about jobs uses the index that store.py names beside it: MongoDB's profiler is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from hyperfarm.blobs import Blobs
from hyperfarm.indexes import INDEXES, NEWS, ensure_indexes
from hyperfarm.jobs import JobState
from hyperfarm.queries import NO_KEY
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, expire, job, queue, watched


@pytest.fixture
def full(store: Store) -> Store:
    """Three experiments of 400 jobs in all states, some of them with leases, reports and blobs."""
    docs, reports = [], []
    blobs = Blobs(store.database)
    for number, key in enumerate((KEY, "other", None)):
        for n in range(400):
            tid = 1000 * number + n
            state = (2, 2, 2, 3, 4)[n % 5] if n < 390 else n % 2
            fields: dict[str, Any] = {"state": state, "version": 2, "attempt": 1, "max_attempts": 3}
            if state != 4:
                fields["slot"] = n
            if state == 1:
                fields["lease"] = {"token": f"t{tid}", "worker": "w", "expires": store.now()}
            if state == 2:
                fields["result"] = {"status": "ok", "loss": float(n % 7)}
                fields["artifacts"] = [{"name": "m", "kind": "model", "blob": ObjectId()}]
            docs.append(job(tid, key, **fields))
            reports.append({"exp_key": key, "tid": tid, "token": f"t{tid}", "loss": 1.0})
        for _ in range(3):
            blobs.put(b"x", "model", exp_key=key)
    store.jobs.insert_many(docs)
    store.reports_.insert_many(reports)
    return store


def used(store: Store, seen: list[dict[str, Any]]) -> set[str]:
    """The names of the indexes in the profiler's entries."""
    names = set()
    for entry in seen:
        collection = store.database[entry["ns"].partition(".")[2]]
        known = {str(dict(index["key"])): name for name, index in collection.index_information().items()}
        plan = entry.get("planSummary", "")
        assert "COLLSCAN" not in plan, entry["command"]
        if plan.startswith("IDHACK"):
            names.add("_id_")
        for text in re.findall(r"\{([^}]*)\}", plan):
            fields = [part.strip().split(": ") for part in text.split(",")]
            names.add(known[str({field: int(way) for field, way in fields})])
    return names


STATEMENTS: dict[str, tuple[Callable[[Store], Any], set[str]]] = {
    "withdraw_queued": (lambda s: s.withdraw_queued(KEY), {"queue"}),
    "cancel": (lambda s: s.cancel(KEY), {"jobs"}),
    "reap": (lambda s: s.reap(), {"lease_expiry", "_id_"}),
    "waiting": (lambda s: s.waiting(), {"queue"}),
    "claim": (lambda s: claim(s), {"queue"}),
    "claim of None": (lambda s: claim(s, None), {"queue"}),
    "claimed": (lambda s: s.claimed("t391"), {"lease_token"}),
    "renew": (lambda s: s.renew(["t391", "t393", "gone"], 9), {"lease_token"}),
    "reports": (lambda s: s.reports(job(7, lease={"token": "t7"})), {"trial"}),
    "job_versions": (lambda s: list(s.job_versions(KEY)), {"view"}),
    "job_versions of all": (lambda s: list(s.job_versions(None)), {"view"}),
    "changed_jobs": (lambda s: list(s.changed_jobs(KEY, [1, 2], 398)), {"view"}),
    "changed_jobs of all": (lambda s: list(s.changed_jobs(None, [1, 2], 2398)), {"view"}),
    "jobs_by_tid": (lambda s: s.jobs_by_tid(KEY, [3, 4]), {"view"}),
    "jobs_by_tid of all": (lambda s: s.jobs_by_tid(None, [3, 4]), {"view"}),
    "find_jobs": (lambda s: s.find_jobs(KEY), {"view"}),
    "find_jobs by state": (lambda s: s.find_jobs(KEY, [JobState.ERROR]), {"view"}),
    "find_jobs of all": (lambda s: s.find_jobs(None), {"view"}),
    "job": (lambda s: s.job(KEY, 3), {"view"}),
    "job_rows": (lambda s: s.job_rows(KEY, ["state"]), {"view"}),
    "best_job": (lambda s: s.best_job(KEY), {"best"}),
    "prune_models": (lambda s: s.prune_models(KEY, 3), {"models", "_id_"}),
    "running_jobs": (lambda s: s.running_jobs(), {"lease_expiry"}),
    "running_count": (lambda s: s.running_count(), {"lease_expiry"}),
    "first_waiting": (lambda s: s.first_waiting(KEY), {"queue"}),
    "count_jobs": (lambda s: s.count_jobs(KEY, [JobState.DONE]), {"view"}),
    "jobs without a key": (lambda s: list(s.job_versions(NO_KEY)), {"view"}),
    "without_lease": (lambda s: s.without_lease(), {"lease_expiry"}),
    "unpark": (lambda s: s.unpark(60), {"queue"}),
    "take_back": (lambda s: s.take_back([ObjectId()], 9), {"_id_"}),
    "adopt": (lambda s: s.adopt(KEY), {"jobs"}),
    "changed_lately": (lambda s: s.changed_lately(KEY, 5), {"jobs"}),
    "remove_jobs": (lambda s: s.remove_jobs("other"), {"jobs", "trial"}),
    "new_tids": (lambda s: s.new_tids(3), {"counter"}),
    "the recipe's query": (
        lambda s: s.jobs.find_one({"exp_key": KEY, "result.status": "ok"}, sort=[("result.loss", 1)]),
        {"best"},
    ),
    "blobs": (
        lambda s: Blobs(s.database).delete_experiment("other", []),
        {"owner", "experiment", "_id_", "chunks"},
    ),
    "attachments": (lambda s: Blobs(s.database).attachment_ids(KEY), {"jobs"}),
}
ANY_BY_EXP_KEY = {"view", "best", "slot", "queue"}


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_named_index_is_used(full: Store, name: str) -> None:
    call, expected = STATEMENTS[name]
    if name == "new_tids":
        full.new_tids(1)
    with watched(full) as seen:
        call(full)
    plans = [entry for entry in seen if entry.get("planSummary")]
    assert plans, seen
    indexes = used(full, seen)
    if "jobs" in expected:  # Any index that begins with exp_key serves.
        assert indexes & ANY_BY_EXP_KEY
        indexes = indexes - ANY_BY_EXP_KEY | {"jobs"}
    if "chunks" in expected:
        indexes = {"chunks" if one.startswith("files_id") else one for one in indexes}
    assert indexes == expected


def test_an_attachment_of_an_experiment_is_found_by_an_index(full: Store) -> None:
    with watched(full) as seen:
        Blobs(full.database).experiment_attachment(KEY, "FMinIter_Domain")
    assert used(full, seen) <= {"experiment", "filename_1_uploadDate_1"}, "either leads to a file or two"


@pytest.mark.parametrize("name", ["finish", "checkpoint", "release", "end_attempt", "add_reports"])
def test_a_write_of_a_worker_looks_at_its_job_alone(full: Store, name: str) -> None:
    held = claim(full)
    calls: dict[str, Callable[[], Any]] = {
        "finish": lambda: full.finish(held, JobState.DONE, OK),
        "checkpoint": lambda: full.checkpoint(held, {"status": "running"}),
        "release": lambda: full.release(held, "why not"),
        "end_attempt": lambda: full.end_attempt(held, "it died"),
        "add_reports": lambda: full.add_reports(held, [{"loss": 1.0}]),
    }
    with watched(full) as seen:
        calls[name]()
    assert used(full, seen) <= {"_id_", "lease_token"}, "each of them leads to one job"
    assert sum(entry.get("docsExamined", 0) for entry in seen) == 1


def looked_at(seen: list[dict[str, Any]]) -> tuple[int, int]:
    """(keys, documents) that the database examined."""
    return sum(one.get("keysExamined", 0) for one in seen), sum(one.get("docsExamined", 0) for one in seen)


def test_the_best_job_is_read_without_sorting(full: Store) -> None:
    with watched(full) as seen:
        full.best_job(KEY)
    assert looked_at(seen) == (1, 1)
    assert not any(entry.get("hasSortStage") for entry in seen)


def test_a_claim_looks_at_one_job_however_many_are_finished(store: Store) -> None:
    tids = queue(store, 300)
    # The planner remembers plans that were good while all was new; they must stay good.
    for _ in tids[:-5]:
        store.finish(claim(store), JobState.DONE, OK)
    with watched(store) as seen:
        claim(store)
    keys, docs = looked_at(seen)
    assert keys <= 2
    assert docs <= 2


def test_reaping_looks_at_expired_leases_alone(store: Store) -> None:
    queue(store, 50)
    held = [claim(store) for _ in range(50)]
    expire(store, held[7])
    with watched(store) as seen:
        assert len(store.reap()) == 1
    keys, docs = looked_at(seen)
    assert keys <= 4
    assert docs <= 2


def test_versions_of_all_jobs_come_from_the_index_alone(full: Store) -> None:
    with watched(full) as seen:
        assert len(list(full.job_versions(KEY))) == 400
        assert len(list(full.changed_jobs(KEY, [5, 6], 397))) == 4
    assert looked_at(seen)[1] == 0


def test_missing_indexes_are_made_again(store: Store) -> None:
    store.jobs.drop_index("queue")
    store.reports_.drop_indexes()
    ensure_indexes(store.database)
    for collection, indexes in INDEXES.items():
        names = set(store.database[collection].index_information())
        assert {index.document["name"] for index in indexes} <= names


@pytest.mark.parametrize("capped", [True, False])
def test_another_host_may_make_the_collection_of_news_in_between(
    store: Store, monkeypatch: pytest.MonkeyPatch, capped: bool
) -> None:
    database = store.database
    database.drop_collection(NEWS)
    asked = Collection.options

    def others_are_faster(collection: Collection[Any]) -> Any:
        monkeypatch.undo()
        told = asked(collection)
        if capped:
            database.create_collection(NEWS, capped=True, size=1 << 16)
        else:
            collection.insert_one({})
        return told

    monkeypatch.setattr(Collection, "options", others_are_faster)
    ensure_indexes(database)
    assert database[NEWS].options()["capped"] is True
    assert database[NEWS].count_documents({}) == 1

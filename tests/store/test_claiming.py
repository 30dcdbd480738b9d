"""Rule 1: a claim is one statement, and gives one job to one worker with a lease by the database's clock."""

from __future__ import annotations

import datetime as dt
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pymongo import MongoClient, monitoring

from hyperfarm.errors import OutcomeUnknown
from hyperfarm.jobs import Claim, JobState
from hyperfarm.mongo import normalise_url
from hyperfarm.store import Store, new_token
from tests.making import KEY, OK, claim, expire, job, queue, stored


def test_each_job_goes_to_exactly_one_of_many_claimers(store: Store, mongo_url: str) -> None:
    tids = queue(store, 200)
    ready = threading.Barrier(8)

    def claim_all(number: int) -> list[Claim]:
        own = Store.open(mongo_url)
        mine: list[Claim] = []
        ready.wait(timeout=30)
        while True:
            got = own.claim(KEY, worker=f"w{number}", owner="o", token=new_token(), lease_s=60)
            if got is None:
                own.close()
                return mine
            mine.append(got)

    with ThreadPoolExecutor(8) as pool:
        claims = [one for mine in pool.map(claim_all, range(8)) for one in mine]
    assert sorted(one.tid for one in claims) == tids
    assert len({one.lease.token for one in claims}) == 200
    held = {doc["tid"]: doc for doc in store.jobs.find()}
    for one in claims:
        doc = held[one.tid]
        assert (doc["state"], doc["attempt"]) == (JobState.RUNNING, 1)
        assert (doc["lease"]["token"], doc["lease"]["worker"]) == (one.lease.token, one.lease.worker)


def test_a_claim_writes_owner_lease_attempt_and_times(store: Store) -> None:
    queue(store)
    before = store.now()
    held = store.claim(KEY, worker="host:1:ab", owner="host:1", token="t" * 32, lease_s=90)
    after = store.now()
    assert held is not None
    doc = stored(store, held)
    assert doc is not None
    assert (doc["state"], doc["owner"], doc["attempt"], doc["version"]) == (1, "host:1", 1, 1)
    assert doc["lease"]["token"] == held.lease.token == "t" * 32
    assert doc["lease"]["worker"] == held.lease.worker == "host:1:ab"
    lease = dt.timedelta(seconds=90)
    assert before + lease <= doc["lease"]["expires"] <= after + lease
    assert before <= doc["book_time"] <= after
    assert before <= doc["refresh_time"] <= after
    assert held.doc == doc
    assert (held.attempt, held.max_attempts) == (1, 3)


def test_claims_and_renewals_carry_no_time_of_the_client(mongo_url: str, store: Store) -> None:
    sent: list[Any] = []

    class Recorder(monitoring.CommandListener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            sent.append((event.command_name, dict(event.command)))

        def succeeded(self, event: Any) -> None: ...

        def failed(self, event: Any) -> None: ...

    def dates(value: Any) -> list[dt.datetime]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [date for item in value for date in dates(item)]
        return [value] if isinstance(value, dt.datetime) else []

    url, name = normalise_url(mongo_url)
    with MongoClient(url, tz_aware=True, event_listeners=[Recorder()]) as client:
        own = Store(client[name])
        queue(store)
        held = claim(own)
        own.renew([held.lease.token], 60)
    statements = [command for name, command in sent if name in ("findAndModify", "update")]
    assert len(statements) == 2
    assert dates(statements) == []
    assert all("$$NOW" in str(statement) for statement in statements)


def test_the_oldest_job_goes_first(store: Store) -> None:
    order = list(range(20))
    random.Random(1).shuffle(order)
    for tid in order:
        store.insert_jobs([job(tid)])
    half = [claim(store).tid for _ in order[:10]]
    # Without the indexes that happen to be in this order, too.
    for hidden in (True, False):
        for name in ("queue", "view", "best", "slot"):
            store.database.command("collMod", "jobs", index={"name": name, "hidden": hidden})
        if hidden:
            half += [claim(store).tid for _ in order[10:]]
    assert half == sorted(order)


def test_parked_finished_and_foreign_jobs_are_not_claimed(store: Store) -> None:
    docs = [job(0, owner="hyperfarm:waits"), job(1, "other"), job(2, None)]
    docs += [job(10 + state, state=state) for state in (1, 2, 3, 4)]
    store.insert_jobs(docs)
    assert store.claim(KEY, worker="w", owner="o", token="t", lease_s=60) is None
    assert set(store.waiting().exp_keys) == {None, "other"}
    assert claim(store, "other").tid == 1
    assert claim(store, None).tid == 2
    store.jobs.update_one({"tid": 0}, {"$set": {"owner": None}})
    assert claim(store).tid == 0
    assert store.waiting().exp_keys == []


def test_every_attempt_has_a_fresh_token_and_the_next_number(store: Store) -> None:
    queue(store)
    seen = []
    for number in (1, 2, 3):
        held = claim(store, worker=f"w{number}")
        seen.append(held.lease.token)
        assert held.attempt == number
        expire(store, held)
        store.reap()
    assert len(set(seen)) == 3
    assert all(len(token) == 32 for token in seen)


def test_a_claim_of_unknown_outcome_is_found_by_its_token(store: Store) -> None:
    queue(store, 2)
    assert store.claimed("nobody's") is None
    held = claim(store)
    found = store.claimed(held.lease.token)
    assert found is not None
    assert (found.job_id, found.lease, found.doc) == (held.job_id, held.lease, held.doc)
    store.finish(held, JobState.DONE, OK)
    assert store.claimed(held.lease.token) is None


def test_no_token_holds_two_jobs(store: Store) -> None:
    queue(store, 2)
    held = claim(store)
    with pytest.raises(OutcomeUnknown, match="given up"):
        store.claim(KEY, worker="w1", owner="w1:1", token=held.lease.token, lease_s=60)
    assert store.claimed(held.lease.token) == held
    assert claim(store).tid == held.tid + 1, "the other job has stayed in the queue"


def test_names_of_workers_and_values_of_users_are_no_expressions(store: Store) -> None:
    doc = job(0, spec={"a": "$state", "b": {"$literal": 1}})
    doc["misc"]["vals"]["x"] = ["$tid"]
    store.jobs.insert_one(doc)
    held = store.claim(KEY, worker="$state", owner="$tid", token="$_id", lease_s=60)
    assert held is not None
    after = store.jobs.find_one({"tid": 0})
    assert after is not None
    assert (after["owner"], after["lease"]["worker"], after["lease"]["token"]) == ("$tid", "$state", "$_id")
    assert after["misc"] == doc["misc"]
    assert after["spec"] == doc["spec"]
    assert store.renew(["$_id"], 60) == set()
    assert store.jobs.find_one({"tid": 0}, {"misc": 1, "_id": 0}) == {"misc": doc["misc"]}


def test_a_job_of_hyperopt_without_our_fields_can_be_claimed(store: Store) -> None:
    doc = job(7)
    del doc["version"]
    store.jobs.insert_one(doc)
    held = claim(store)
    assert (held.attempt, held.doc["version"], held.max_attempts) == (1, 1, 3)

"""What the doctor decides from facts: no database, no clock, no host."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from hyperfarm.doctor import (
    REPLICA_SET,
    SHARDED,
    STANDALONE,
    Status,
    Topology,
    check_clock,
    check_indexes,
    check_server,
    check_topology,
    check_write_concern,
)
from hyperfarm.doctor_farm import (
    Disk,
    Secret,
    Trouble,
    Versions,
    check_disk,
    check_exhausted,
    check_foreign,
    check_leases,
    check_pauses,
    check_refusals,
    check_secret,
    check_signatures,
    check_versions,
    check_workers,
)
from hyperfarm.indexes import INDEXES
from hyperfarm.presence import pauses, silence_s

NOW = datetime(2030, 5, 1, 12, 0, tzinfo=timezone.utc)
HERE = Versions(python="3.11.7", hyperfarm="0.1.0", hyperopt="0.3.0")
OK, WARNING, PROBLEM = Status.OK, Status.WARNING, Status.PROBLEM


def worker(host: str = "host7", silent_s: float = 5, **fields: Any) -> dict[str, Any]:
    versions = {"hyperfarm": "0.1.0", "hyperopt": "0.3.0"}
    beat = NOW - timedelta(seconds=silent_s)
    return {"_id": f"{host}:7:ab", "host": host, "pid": 7, "slots": 4, "busy": 1, "exp_keys": None,
            "python": "3.11.2", "versions": versions, "heartbeat": beat, **fields}  # fmt: skip


# ---- server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "status"),
    [([4, 4, 29, 0], PROBLEM), ([5, 0, 0, 0], OK), ([6, 0, 27, 0], OK), ([10, 0, 0, 0], OK)],
)
def test_the_server_must_be_new_enough(version, status):
    check = check_server(version)
    assert check.status is status
    assert ".".join(map(str, version[:3])) in check.text
    assert ("5.0 or newer" in check.text) == (status is PROBLEM)


def replica_set(*states: str, primary: str | None = "h0", **fields: Any) -> Topology:
    members = {f"h{number}": state for number, state in enumerate(states)}
    return Topology(kind=REPLICA_SET, hosts=len(states), primary=primary, members=members, **fields)


def test_a_whole_replica_set_is_ok():
    check = check_topology(replica_set("PRIMARY", "SECONDARY", "ARBITER"))
    assert check.ok
    assert "3 members, 3 up, primary h0" in check.text


def test_a_member_that_is_away_is_named():
    check = check_topology(replica_set("PRIMARY", "SECONDARY", "(not reachable/healthy)"))
    assert check.status is WARNING
    assert "2 up" in check.text
    assert "h2 is (not reachable" in check.text


@pytest.mark.parametrize("members", [{"h0": "SECONDARY"}, None])
def test_a_set_without_a_primary_is_a_problem(members):
    check = check_topology(Topology(kind=REPLICA_SET, hosts=1, primary=None, members=members))
    assert check.status is PROBLEM
    assert "no primary" in check.text


def test_without_the_right_to_ask_the_topology_says_so():
    check = check_topology(Topology(kind=REPLICA_SET, hosts=3, primary="h0", members=None))
    assert check.ok
    assert "3 members" in check.text
    assert "may not ask" in check.text


def test_other_topologies_are_ok_with_a_note():
    assert "poll" in check_topology(Topology(kind=STANDALONE)).text
    assert "journal" in check_topology(Topology(kind=STANDALONE)).text
    assert check_topology(Topology(kind=STANDALONE)).ok
    assert check_topology(Topology(kind=SHARDED)).ok


THREE = replica_set("PRIMARY", "SECONDARY", "SECONDARY")


@pytest.mark.parametrize(
    ("given", "default", "topology", "status", "says"),
    [
        ({"w": "majority"}, {"w": 1}, THREE, OK, "w: majority (the connection's)"),
        ({}, {"w": "majority"}, THREE, OK, "w: majority (the server's default)"),
        ({}, None, THREE, OK, "w: majority (MongoDB's default)"),
        ({"w": 1}, None, THREE, WARNING, "w: 1"),
        ({"w": 2}, None, THREE, OK, "w: 2"),
        ({}, {"w": 1}, THREE, WARNING, "w: 1 (the server's default)"),
        ({"w": "racks"}, None, THREE, OK, "w: racks"),
        ({"w": 1}, None, replica_set("PRIMARY"), OK, "w: 1"),
        ({"w": 0}, None, THREE, PROBLEM, "no write is confirmed"),
        ({"w": 0}, None, Topology(kind=STANDALONE), PROBLEM, "no write is confirmed"),
        ({}, None, Topology(kind=STANDALONE), OK, "w: 1"),
        ({"w": "majority", "j": False}, None, THREE, WARNING, "without the journal"),
        ({"w": 1}, None, Topology(kind=SHARDED), OK, "w: 1"),
    ],
)
def test_write_concern(given, default, topology, status, says):
    check = check_write_concern(given, default, topology)
    assert check.status is status
    assert says in check.text
    assert bool(check.advice) == (status is not OK)


def information() -> dict[str, dict[str, Any]]:
    """What pymongo's `index_information` tells of a database with all our indexes."""
    told: dict[str, dict[str, Any]] = {}
    for collection, models in INDEXES.items():
        told[collection] = {"_id_": {"v": 2, "key": [("_id", 1)]}}
        for model in models:
            index = dict(model.document)
            told[collection][index.pop("name")] = {**index, "v": 2, "key": list(index["key"].items())}
    return told


def test_all_indexes_are_there():
    assert check_indexes(information()).text == f"all {sum(map(len, INDEXES.values()))} are there"


def test_an_empty_database_has_no_indexes_yet():
    check = check_indexes({name: {} for name in INDEXES})
    assert check.ok
    assert "empty" in check.text


def test_missing_indexes_are_named():
    present = information()
    del present["jobs"]["queue"], present["reports"]["trial"]
    check = check_indexes(present)
    assert check.status is WARNING
    assert "jobs.queue, reports.trial" in check.text
    assert "makes them" in check.advice


@pytest.mark.parametrize(
    "change",
    [{"key": [("tid", 1), ("exp_key", 1)]}, {"key": [("exp_key", 1), ("slot", -1)]}, {"unique": False},
     {"partialFilterExpression": {"slot": {"$gt": 3}}}],
)  # fmt: skip
def test_another_index_under_our_name_is_a_problem(change):
    present = information()
    present["jobs"]["slot"].update(change)
    check = check_indexes(present)
    assert check.status is PROBLEM
    assert "jobs.slot has {" in check.text
    assert 'db["jobs"].dropIndex("slot")' in check.advice


@pytest.mark.parametrize(
    ("ahead", "error", "status"),
    [
        (0.0, 0.001, OK),
        (59, 0.01, OK),
        (-59, 0.01, OK),
        (61, 0.01, WARNING),
        (-3600, 1, WARNING),
        (65, 10, OK),
    ],
)
def test_the_clock_is_at_most_a_warning(ahead, error, status):
    check = check_clock(ahead, error)
    assert check.status is status
    if status is WARNING:
        assert ("ahead of" if ahead > 0 else "behind") in check.text
        assert "leases do not depend on it" in check.text
        assert "logs" in check.advice


# ---- workers ---------------------------------------------------------------------------------------------


def test_living_workers_are_counted():
    check = check_workers([worker(), worker("host8"), worker("host8", pid=9)], ["digits"], NOW)
    assert (check.status, check.text) == (OK, "3 alive on 2 hosts, 3 of 12 slots busy")


def test_no_worker_is_fine_while_nothing_waits():
    assert check_workers([], [], NOW).ok


@pytest.mark.parametrize("workers", [[], [worker(silent_s=300)], [worker(exp_keys=["other"])]])
def test_nobody_serving_what_waits_is_a_problem(workers):
    check = check_workers(workers, ["digits"], NOW)
    assert check.status is PROBLEM
    assert "nobody serves what waits: digits" in check.text
    assert "hyperfarm worker" in check.advice


@pytest.mark.parametrize(("silent_s", "status"), [(99, OK), (101, WARNING), (7000, WARNING), (2 * 86400, OK)])
def test_a_worker_that_fell_silent_of_late_is_named(silent_s, status):
    check = check_workers([worker(silent_s=silent_s), worker("alive")], [], NOW)
    assert check.status is status
    assert ("host7 (process 7)" in check.text) == (status is WARNING)


def test_a_worker_without_a_heartbeat_is_dead():
    assert silence_s({"host": "h"}, NOW) == float("inf")
    assert check_workers([{"_id": "x"}], [], NOW).ok


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"python": "3.12.1"}, "host7 (process 7) runs Python 3.12.1 (here 3.11.7)"),
        ({"versions": {"hyperfarm": "0.0.9", "hyperopt": "0.3.0"}}, "hyperfarm 0.0.9 (here 0.1.0)"),
        ({"versions": {"hyperfarm": "0.1.0", "hyperopt": "0.2.7"}}, "hyperopt 0.2.7 (here 0.3.0)"),
        ({"versions": None}, "hyperfarm unknown (here 0.1.0), hyperopt unknown"),
    ],
)
def test_other_versions_are_named(fields, says):
    check = check_versions([worker("same"), worker(**fields)], HERE, NOW)
    assert check is not None
    assert check.status is WARNING
    assert says in check.text
    assert "same (" not in check.text
    assert ("minor version" in check.advice) == ("python" in fields)


def test_the_same_versions_are_ok_and_the_dead_do_not_count():
    check = check_versions([worker(), worker("old", silent_s=500, python="2.7")], HERE, NOW)
    assert check is not None
    assert check.text == "Python 3.11, hyperfarm 0.1.0, hyperopt 0.3.0, here and at 1 worker"
    assert check_versions([], HERE, NOW) is None


REFUSED = [{"exp_key": "digits", "revision": "r", "reason": "it was started with Python 3.9"}]


def test_a_refusal_is_a_warning_while_another_worker_serves_it():
    check = check_refusals([worker(refused=REFUSED), worker("able")], ["digits"], NOW)
    assert check is not None
    assert check.status is WARNING
    assert "host7 (process 7) refuses digits: it was started with Python 3.9" in check.text


@pytest.mark.parametrize(
    "other", [worker("b", refused=REFUSED), worker("b", exp_keys=["x"]), worker("b", 999)]
)
def test_what_all_refuse_is_a_problem_if_it_waits(other):
    workers = [worker(refused=REFUSED), other]
    waits, rests = (check_refusals(workers, keys, NOW) for keys in (["digits"], []))
    assert waits is not None
    assert waits.status is PROBLEM
    assert "every worker refuses what waits: digits" in waits.text
    assert rests is not None
    assert rests.status is WARNING


def test_no_refusal():
    check = check_refusals([worker(refused=[])], ["digits"], NOW)
    assert check is not None
    assert check.ok
    assert check_refusals([worker(silent_s=999, refused=REFUSED)], [], NOW) is None


PAUSE = {"slot": 2, "crashes": 5, "reason": "its process was killed by SIGSEGV", "exp_key": "digits",
         "until": NOW, "seconds": 16.0}  # fmt: skip


def test_a_paused_slot_is_told_with_its_host():
    (text,) = pauses([worker(paused=[PAUSE])], untold="digits")
    assert text == "host7: slot 2 after 5 crashes in a row (its process was killed by SIGSEGV), for 16 s"
    check = check_pauses([worker(paused=[PAUSE])], NOW)
    assert check is not None
    assert check.status is WARNING
    assert check.text == f"paused: {text}, last with digits"


def test_a_pause_may_say_little():
    few = {"slot": 0, "crashes": 1, "reason": "x", "exp_key": None, "until": None, "seconds": 300}
    assert pauses([worker(paused=[few])]) == ["host7: slot 0 after a crash (x), for 5 min"]
    check = check_pauses([worker()], NOW)
    assert check is not None
    assert check.ok
    assert check_pauses([worker(silent_s=999, paused=[PAUSE])], NOW) is None


# ---- trials ----------------------------------------------------------------------------------------------


def trouble(count: int = 2, since: datetime | None = NOW, key: str | None = "digits") -> Trouble:
    return Trouble(exp_key=key, count=count, tid=17, since=since)


def test_expired_leases():
    assert check_leases([], True).ok
    nobody, somebody = (check_leases([trouble()], lives) for lives in (False, True))
    assert (nobody.status, somebody.status) == (WARNING, PROBLEM)
    assert "2 trials of digits (the last 17)" in nobody.text
    assert "start a worker" in nobody.advice
    assert "restart" in somebody.advice


@pytest.mark.parametrize(("hours", "status"), [(1, OK), (23, OK), (25, WARNING)])
def test_jobs_without_a_lease(hours, status):
    check = check_foreign([trouble(1, NOW - timedelta(hours=hours), None)], NOW)
    assert check is not None
    assert check.status is status
    assert "1 trial of None (trial 17)" in check.text
    assert check_foreign([], NOW) is None


def test_exhausted_attempts_name_a_command():
    assert check_exhausted([]).ok
    check = check_exhausted([trouble(1), trouble(3, key="other")])
    assert check.status is WARNING
    assert "1 trial of digits (trial 17); 3 trials of other (the last 17)" in check.text
    assert "hyperfarm show digits 17" in check.advice


# ---- this host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "total", "status"),
    [
        (50e9, 200e9, OK),
        (0.9e9, 2e9, WARNING),
        (50e9, 2000e9, WARNING),
        (50e6, 200e9, PROBLEM),
        (0, 0, PROBLEM),
    ],
)
def test_room_on_a_disk(free, total, status):
    check = check_disk(Disk(name="temp disk", place="/tmp", free=free, total=total, remedy="make room"))
    assert check.status is status
    assert (check.advice == "make room") == (status is not OK)


def test_the_secret():
    assert check_secret(Secret(file="f", exists=True)).ok
    absent = check_secret(Secret(file="f", exists=False))
    assert absent.ok
    assert "none yet" in absent.text
    assert check_secret(Secret(file="f", exists=True, fault="it is open to all")).status is PROBLEM


def test_signatures():
    assert check_signatures({}, 0, 0, True) is None
    every, newest = check_signatures({}, 2, 2, True), check_signatures({}, 5, 9, True)
    assert every is not None
    assert "all 2 experiments" in every.text
    assert newest is not None
    assert "the 5 newest of 9 experiments" in newest.text
    wrong = check_signatures({"digits": "was altered"}, 1, 1, True)
    assert wrong is not None
    assert (wrong.status, wrong.text) == (PROBLEM, "digits: was altered")
    unknown = check_signatures({}, 1, 1, False)
    assert unknown is not None
    assert unknown.status is WARNING
    assert "copy the file" in unknown.advice

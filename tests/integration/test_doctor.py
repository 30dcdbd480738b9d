"""`hyperfarm doctor` at a real database, with real workers."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hyperopt import hp

from hyperfarm import embedded, minimize, settings
from hyperfarm.cli import cli
from hyperfarm.doctor_farm import LONG_EXPIRED_S
from hyperfarm.errors import SettingsError
from hyperfarm.indexes import INDEXES
from hyperfarm.store import Store
from tests.making import claim, job, queue, watched
from tests.support import eventually, hyperfarm, worker

Checks = dict[str, dict[str, str]]
Doctor = Callable[..., Checks]


@pytest.fixture
def doctor(mongo_url: str) -> Doctor:
    """Ask the doctor; return its checks by name."""

    def ask(url: str = mongo_url) -> Checks:
        command = ["doctor", "--json", "--mongo", url]
        done = CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)
        told = json.loads(done.stdout)
        assert done.exit_code == int(any(check["status"] == "problem" for check in told))
        assert all(set(check) == {"name", "status", "text", "advice"} for check in told)
        assert all(check["advice"] for check in told if check["status"] != "ok")
        names = [check["name"] for check in told]
        assert len(set(names)) == len(names)
        return {check["name"]: check for check in told}

    return ask


@contextlib.contextmanager
def failing(store: Store, command: str, **how: Any) -> Iterator[None]:
    """The server fails this command, for the doctor alone."""
    data = {"failCommands": [command], "appName": "hyperfarm doctor", **how}
    admin = store.database.client.admin
    admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data})
    try:
        yield
    finally:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def test_a_fresh_farm_is_well(store: Store, mongo_url: str) -> None:
    done = hyperfarm("doctor", "--mongo", mongo_url)
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines), done.stdout
    names = [line[9:24].strip() for line in lines]
    assert names[:3] == ["database", "server", "topology"]
    assert {"clock", "indexes", "workers", "leases", "attempts", "secret", "temp disk", "cache disk"} <= set(
        names
    )
    assert "a replica set with 1 member, 1 up, primary 127.0.0.1:" in done.stdout
    assert "w: majority" in done.stdout
    assert f"all {sum(map(len, INDEXES.values()))} are there" in done.stdout
    assert "none yet" in done.stdout  # The secret, and asking made none:
    assert not settings.secret_file().exists()


def test_it_changes_nothing(doctor: Doctor, mongod: embedded.Server) -> None:
    url = f"mongodb://127.0.0.1:{mongod.port}/nobody_was_here?replicaSet=hyperfarm"
    told = doctor(url)
    assert "empty" in told["indexes"]["text"]
    assert {check["status"] for check in told.values()} == {"ok"}
    opened = Store.open(url)
    try:
        opened.database.client.drop_database("nobody_was_here")
        doctor(url)
        assert "nobody_was_here" not in opened.database.client.list_database_names()
    finally:
        opened.close()


def test_a_standalone_server(doctor: Doctor, tmp_path: Path) -> None:
    with embedded.throwaway(tmp_path / "db", replica_set=False) as server:
        told = doctor(server.url)
        assert {check["status"] for check in told.values()} == {"ok"}
        assert "standalone" in told["topology"]["text"]
        assert "poll" in told["topology"]["text"]
        Store.open(server.url).close()
        assert doctor(server.url)["server disk"]["text"].endswith("at the server's data")
        assert doctor(server.url + "?w=0")["write concern"]["status"] == "problem"


def test_the_private_database_is_started_for_the_while(own_home: Path) -> None:
    done = hyperfarm("doctor", "--json")
    told = {check["name"]: check for check in json.loads(done.stdout)}
    assert told["topology"]["status"] == "ok"
    assert str(own_home / "data") in told["data disk"]["text"]
    assert embedded.status() is None


def test_a_private_database_that_cannot_start(tmp_path: Path) -> None:
    done = hyperfarm("doctor", check=False, HYPERFARM_MONGOD=str(tmp_path / "none"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("problem  database")
    assert "temp disk" in done.stdout
    assert "Traceback" not in done.stderr


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound but not listening: nobody answers.
        url = f"mongodb://me:topsecret@127.0.0.1:{taken.getsockname()[1]}/db"
        done = hyperfarm("doctor", "--mongo", url, check=False)
    assert done.returncode == 1
    first, advice, *others = done.stdout.splitlines()
    assert first.startswith("problem  database")
    assert "no MongoDB answers at mongodb://me:***@" in first
    assert "hyperfarm db start" in advice
    assert [line.split("  ")[0] for line in others] == ["ok"] * 3
    assert "topsecret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "options", [["--mongo", "nonsense"], ["--mongo", "mongodb://h:x/db"], ["--no-such"], ["x"]]
)
def test_bad_input(options: list[str]) -> None:
    done = hyperfarm("doctor", *options, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_an_old_server_is_a_line(doctor: Doctor, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperfarm.doctor.OLDEST_SERVER", (99, 0))
    told = doctor()
    assert told["server"]["status"] == "problem"
    assert "99.0 or newer" in told["server"]["text"]
    assert told["indexes"]["status"] == "ok"


def test_a_url_with_a_weak_write_concern(doctor: Doctor, store: Store, mongo_url: str) -> None:
    assert doctor(mongo_url + "&w=1")["write concern"]["status"] == "ok"  # One member: nobody to lose it to.
    told = doctor(mongo_url + "&w=0")["write concern"]
    assert told["status"] == "problem"
    assert "remove w=0" in told["advice"]


def test_indexes_that_are_missing_or_others(doctor: Doctor, store: Store) -> None:
    store.jobs.drop_index("queue")
    store.jobs.drop_index("view")
    told = doctor()
    assert "jobs.queue, jobs.view" in told["indexes"]["text"]
    assert told["workers"]["status"] == told["attempts"]["status"] == "ok"
    store.jobs.create_index([("tid", 1)], name="queue")
    told = doctor()["indexes"]
    assert told["status"] == "problem"
    assert "jobs.queue has {tid: 1}" in told["text"]
    assert 'db["jobs"].dropIndex("queue")' in told["advice"]


def test_no_statement_looks_at_all_jobs(doctor: Doctor, store: Store) -> None:
    queue(store, 5, "digits")
    with watched(store) as seen:
        doctor()
    plans = [
        entry["planSummary"] for entry in seen if entry["ns"].endswith(".jobs") and "planSummary" in entry
    ]
    assert len(plans) >= 4
    assert not [plan for plan in plans if "COLLSCAN" in plan]


def test_no_password_is_shown(store: Store, mongo_url: str) -> None:
    # A server that asks for no password still checks one that it is given.
    store.database.command("createUser", "me", pwd="topsecret", roles=["readWrite"])
    try:
        address = mongo_url.removeprefix("mongodb://")
        done = hyperfarm("doctor", "--mongo", f"mongodb://me:topsecret@{address}")
        assert "mongodb://me:***@127.0.0.1" in done.stdout
        assert "topsecret" not in done.stdout + done.stderr
        wrong = hyperfarm("doctor", "--mongo", f"mongodb://me:notsecret@{address}", check=False)
        assert wrong.returncode == 1
        assert "refuses this user" in wrong.stdout
        assert "notsecret" not in wrong.stdout + wrong.stderr
    finally:
        store.database.command("dropUser", "me")


def test_a_command_that_is_refused_leaves_the_others(doctor: Doctor, store: Store) -> None:
    with failing(store, "dbStats", errorCode=13):
        told = doctor()
    assert told["server disk"]["status"] == "warning"
    assert "readWrite" in told["server disk"]["advice"]
    assert told["workers"]["status"] == "ok"
    with failing(store, "replSetGetStatus", errorCode=13):
        assert "may not ask" in doctor()["topology"]["text"]


def test_a_database_that_goes_away_meanwhile(doctor: Doctor, store: Store) -> None:
    with failing(store, "dbStats", closeConnection=True):
        told = doctor()
    assert told["server disk"]["status"] == "problem"
    assert "workers" not in told
    assert told["temp disk"]["status"] == "ok"


# ---- workers ---------------------------------------------------------------------------------------------


def test_a_real_worker_runs_what_this_host_runs(
    doctor: Doctor, store: Store, mongo_url: str, tmp_path: Path
) -> None:
    with worker(mongo_url, tmp_path / "w", "--slots", "2"):
        eventually(store.live_workers, "a worker")
        told = doctor()
        assert told["workers"]["text"] == "1 alive on 1 host, 0 of 2 slots busy"
        assert "here and at 1 worker" in told["versions"]["text"]
        assert told["slots"]["status"] == told["refusals"]["status"] == "ok"
        (doc,) = store.live_workers()
        fields = {"host": "far", "pid": 1, "slots": 1, "busy": 0, "exp_keys": None}
        store.heartbeat("far:1", {**fields, "python": "2.7.18", "versions": doc["versions"]})
        told = doctor()
    assert told["versions"]["status"] == "warning"
    assert "far (process 1) runs Python 2.7.18" in told["versions"]["text"]


def test_a_worker_that_was_killed(doctor: Doctor, store: Store) -> None:
    fields = {"host": "far", "pid": 1, "slots": 1, "busy": 0, "exp_keys": None, "python": "3", "versions": {}}
    store.heartbeat("far:1", fields)
    store.workers_.update_one({}, {"$set": {"heartbeat": store.now() - timedelta(minutes=10)}})
    told = doctor()
    assert told["workers"]["status"] == "warning"
    assert (
        "none alive; silent without having said goodbye: far (process 1) for 10 min"
        in told["workers"]["text"]
    )
    assert "versions" not in told


def test_refusals_and_pauses_name_the_host(doctor: Doctor, store: Store) -> None:
    queue(store, 1, "digits")
    refused = [{"exp_key": "digits", "revision": "r", "reason": "it was started with Python 3.9"}]
    paused = [{"slot": 2, "crashes": 5, "reason": "killed by SIGSEGV", "exp_key": "other", "seconds": 16.0}]
    fields = {"host": "far", "pid": 1, "slots": 4, "busy": 0, "exp_keys": None}
    store.heartbeat("far:1", {**fields, "refused": refused, "paused": paused})
    told = doctor()
    assert told["refusals"]["status"] == "problem"
    assert "far (process 1) refuses digits: it was started with Python 3.9" in told["refusals"]["text"]
    assert told["slots"]["status"] == "warning"
    assert "far: slot 2 after 5 crashes in a row (killed by SIGSEGV), for 16 s" in told["slots"]["text"]


# ---- trials ----------------------------------------------------------------------------------------------


def test_what_waits_without_a_worker(doctor: Doctor, store: Store) -> None:
    queue(store, 3, "digits")
    told = doctor()["workers"]
    assert told["status"] == "problem"
    assert "nobody serves what waits: digits" in told["text"]


def test_a_lease_that_expired_long_ago(doctor: Doctor, store: Store) -> None:
    queue(store, 2)
    held = claim(store)
    claim(store)
    for seconds, status in ((LONG_EXPIRED_S - 30, "ok"), (LONG_EXPIRED_S + 30, "warning")):
        past = store.now() - timedelta(seconds=seconds)
        store.jobs.update_one({"_id": held.job_id}, {"$set": {"lease.expires": past}})
        told = doctor()
        assert told["leases"]["status"] == status
    assert f"1 trial of exp (trial {held.tid})" in told["leases"]["text"]
    assert "foreign workers" not in told


def test_a_job_of_a_foreign_worker(doctor: Doctor, store: Store) -> None:
    store.jobs.insert_one(job(3, None, state=1, owner=["h", 1], book_time=store.now()))
    assert doctor()["foreign workers"]["status"] == "ok"
    store.jobs.update_one({}, {"$set": {"book_time": store.now() - timedelta(days=2)}})
    told = doctor()["foreign workers"]
    assert told["status"] == "warning"
    assert "1 trial of None (trial 3)" in told["text"]


def test_trials_that_were_given_up(doctor: Doctor, store: Store) -> None:
    (tid,) = queue(store)
    store.jobs.update_one({}, {"$set": {"max_attempts": 1}})
    store.end_attempt(claim(store), "its process was killed by SIGSEGV")
    told = doctor()["attempts"]
    assert told["status"] == "warning"
    assert f"1 trial of exp (trial {tid})" in told["text"]
    assert f"hyperfarm show exp {tid}" in told["advice"]
    store.jobs.update_one({}, {"$set": {"refresh_time": store.now() - timedelta(days=2)}})
    assert doctor()["attempts"]["status"] == "ok"


# ---- this host -------------------------------------------------------------------------------------------


def test_signatures_and_the_secret(doctor: Doctor, store: Store, mongo_url: str) -> None:
    space = {"x": hp.uniform("x", 0, 1)}
    minimize(lambda p: p["x"], space, max_evals=1, exp_key="mine", mongo=mongo_url, workers=1, progress=False)
    told = doctor()
    assert "code of 1 experiment is signed" in told["signatures"]["text"]
    file = settings.secret_file()
    ours = file.read_text()
    file.write_text("ab" * 32)
    told = doctor()
    assert told["signatures"]["status"] == "problem"
    assert told["signatures"]["text"].startswith("mine: ")
    file.chmod(0o644)
    told = doctor()
    assert told["secret"]["status"] == "problem"
    assert "chmod 600" in told["secret"]["text"]
    file.unlink()
    told = doctor()
    assert "no secret on this host" in told["signatures"]["text"]
    assert not file.exists()
    assert ours.strip() not in json.dumps(told)
    file.write_text(ours)
    file.chmod(0o600)
    store.database["farm.chunks"].delete_many({})
    told = doctor()
    assert told["signatures"]["status"] == "problem"
    assert "no chunk #0" in told["signatures"]["text"]


def test_folders_that_are_no_use(
    doctor: Doctor, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERFARM_CACHE", str(tmp_path / "not" / "yet" / "there"))
    assert str(tmp_path / "not" / "yet") in doctor()["cache disk"]["text"]
    monkeypatch.setattr("os.access", lambda *_: False)
    told = doctor()
    assert told["cache disk"]["status"] == "problem"
    assert f"{tmp_path} cannot be written" in told["cache disk"]["text"]
    assert not (tmp_path / "not").exists()


def test_a_password_file_that_is_not_there(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERFARM_MONGO_PASSWORD_FILE", "/no/such/file")
    with pytest.raises(SettingsError, match="cannot be read"):
        doctor("mongodb://me@127.0.0.1:1/db")


def test_help_has_an_example() -> None:
    output = CliRunner().invoke(cli, ["doctor", "--help"]).output
    assert "Example:\n    hyperfarm doctor" in output

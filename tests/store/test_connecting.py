"""Opening a farm: a server that lets nobody in, one that is too old, and hyperopt's form of the URL."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from pymongo import MongoClient

from hyperfarm import embedded
from hyperfarm.errors import DatabaseError, DatabaseUnavailable, HyperfarmError
from hyperfarm.mongo import connect
from hyperfarm.mongoexp import MongoTrials, parse_url
from hyperfarm.store import Store
from hyperfarm.wakeup import Wakeup
from tests.making import KEY, claim, job, queue

PASSWORD = "s3cr3t:/@%?#&x"
WRONG = "Wr0ngPassw0rd"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Server]:
    """A mongod that asks for user and password."""
    folder = tmp_path_factory.mktemp("locked")
    with embedded.throwaway(folder, replica_set=False, extra_args=["--auth"]) as server:
        with MongoClient(server.url) as client:
            client.admin.command("createUser", "far.mer", pwd=PASSWORD, roles=["root"])
        yield server


@pytest.mark.parametrize(
    "form", ["mongodb://{}/farm?authSource=admin", "mongo://{}/farm/jobs?authSource=admin"]
)
def test_a_password_with_odd_characters_opens(locked: embedded.Server, form: str) -> None:
    store = Store.open(form.format(f"far.mer:{quote_plus(PASSWORD)}@127.0.0.1:{locked.port}"))
    queue(store)
    assert claim(store).exp_key == KEY
    store.remove_jobs(KEY)
    store.close()


def test_hyperopts_form_takes_a_password_as_it_is(locked: embedded.Server) -> None:
    address = f"mongo://far.mer:{PASSWORD}@127.0.0.1:{locked.port}/farm/jobs?authSource=admin"
    trials = MongoTrials(address, exp_key="k")
    assert len(trials) == 0
    trials.handle.conn.close()
    assert parse_url(address)[1:3] == ("far.mer", PASSWORD)


def test_the_password_may_come_from_the_environment(
    locked: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERFARM_MONGO_PASSWORD", PASSWORD)
    Store.open(f"mongodb://far.mer@127.0.0.1:{locked.port}/farm?authSource=admin").close()


@pytest.mark.parametrize("user", [f"far.mer:{WRONG}@", ""])
def test_a_wrong_password_is_told_and_never_shown(locked: embedded.Server, user: str) -> None:
    with pytest.raises(DatabaseError, match="refuses this user") as caught:
        Store.open(f"mongodb://{user}127.0.0.1:{locked.port}/farm")
    assert not isinstance(caught.value, DatabaseUnavailable)
    assert WRONG not in "".join(traceback.format_exception(caught.value))


def test_a_farm_opened_twice_is_the_same(store: Store, mongo_url: str) -> None:
    queue(store, 2)
    again = Store.open(mongo_url)
    assert again.has_change_streams
    assert again.jobs.count_documents({}) == 2
    assert again.jobs.index_information() == store.jobs.index_information()
    again.close()


def test_a_replica_set_of_another_name_and_one_without_a_primary(tmp_path: Path) -> None:
    with embedded.throwaway(tmp_path) as server:
        with pytest.raises(DatabaseUnavailable, match="no replica set of this name"):
            connect(server.url.replace("replicaSet=hyperfarm", "replicaSet=other"), timeout_s=1)
        with MongoClient(server.url) as client:
            client.admin.command("replSetStepDown", 60, force=True)
        with pytest.raises(DatabaseUnavailable, match="has no primary: it is electing one"):
            connect(server.url, timeout_s=1)


def test_the_time_is_aware_and_the_databases(store: Store) -> None:
    assert store.now().tzinfo is not None
    store.heartbeat("w", {})
    [worker] = store.live_workers()
    assert abs((store.now() - worker["heartbeat"]).total_seconds()) < 10


def test_every_driver_error_is_one_of_ours(store: Store, mongo_url: str) -> None:
    store.jobs.insert_one(job(0))
    closed = Store.open(mongo_url)
    closed.close()
    for call in (closed.now, lambda: closed.new_tids(1), lambda: closed.claimed("t"), closed.reap):
        with pytest.raises(HyperfarmError):
            call()


@pytest.mark.parametrize("queue_only", [True, False])
def test_news_wake_a_waiter(store: Store, mongo_url: str, queue_only: bool) -> None:
    waiting = Store.open(mongo_url)
    wakeup = Wakeup(waiting, queue_only=queue_only, poll_s=60.0)
    seen = wakeup.generation
    if seen == 0:
        wakeup.wait(0, 30)  # The stream stands.
    seen = wakeup.generation
    other = threading.Thread(target=queue, args=(store,))
    other.start()
    wakeup.wait(seen, 30)
    assert wakeup.generation > seen
    wakeup.close()
    other.join()
    waiting.close()

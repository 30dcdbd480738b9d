"""Waiting workers leave the server in peace: commands are counted, on a replica set and on a standalone.

`python -m benchmarks.idle_workers` measures the same with 200 workers, and the server's CPU with it.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from benchmarks import hosts
from benchmarks.idle_workers import ELSEWHERE, SERVED, Load, Meter
from hyperfarm import embedded
from hyperfarm.store import Store
from tests.making import queue
from tests.support import eventually

WORKERS = 20
SPAN_S = 10.0
MOST_IDLE = 1.0
"""Commands a second of one idle worker: 200 of them may send 200."""
MOST_WATCHING = 8.0
"""The same of one that hears of 100 new jobs a second and may have none of them."""
ASKING = ("getMore", "aggregate")


@pytest.fixture(params=["replica set", "standalone"])
def server(request: pytest.FixtureRequest, mongod: embedded.Server, tmp_path) -> Iterator[embedded.Server]:
    if request.param == "replica set":
        yield mongod
    else:
        with embedded.throwaway(tmp_path / "db", replica_set=False) as standalone:
            yield standalone


@pytest.fixture
def url(server: embedded.Server) -> str:
    address, mark, options = server.url.partition("?")
    return f"{address.rpartition('/')[0]}/load_{uuid.uuid4().hex[:12]}{mark}{options}"


@pytest.fixture
def waiting(url: str) -> Iterator[None]:
    """Supervisors that wait for jobs of another experiment, each with connections of its own."""
    with hosts.running(url, WORKERS, ELSEWHERE, processes=2):
        yield


def commands_during(server: embedded.Server, span: Callable[[], object]) -> Counter[str]:
    meter = Meter(server)
    before = meter.commands()
    span()
    counted = meter.commands() - before
    meter.close()
    return counted


def a_while() -> None:
    threading.Event().wait(SPAN_S)


@pytest.mark.usefixtures("waiting")
def test_idle_workers_send_few_commands(server: embedded.Server) -> None:
    counted = commands_during(server, a_while)
    assert counted.total() / WORKERS / SPAN_S < MOST_IDLE, counted


@pytest.mark.usefixtures("waiting")
def test_jobs_of_others_do_not_keep_workers_busy_and_their_own_are_found(
    server: embedded.Server, url: str
) -> None:
    with Load(url, SERVED, rate=100.0, finish=True) as load:
        counted = commands_during(server, a_while)
        asked = sum(counted[name] for name in ASKING)
        assert asked / WORKERS / SPAN_S < MOST_WATCHING, counted
        queue(load.store, 5, ELSEWHERE)
        eventually(lambda: finished(load.store) == 5, "their own jobs, in the midst of the others, are done")
    load.store.close()


def finished(store: Store) -> int:
    return store.jobs.count_documents({"exp_key": ELSEWHERE, "state": 2})

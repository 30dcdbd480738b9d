"""Removing an experiment whose controller has not noticed yet."""

from __future__ import annotations

import threading

from hyperfarm.blobs import Blobs
from hyperfarm.jobs import JobState
from hyperfarm.removal import remove
from hyperfarm.store import Store
from tests.making import KEY, OK, claim, queue
from tests.support import eventually


def test_what_a_busy_controller_adds_after_the_first_look_goes_as_well(store: Store) -> None:
    """At the moment of the look nothing waits and nothing runs; the next jobs are on their way."""
    queue(store)
    store.finish(claim(store), JobState.DONE, OK)

    def add() -> None:
        eventually(lambda: not store.jobs.find_one({}), "the first look")
        queue(store, 2, first_slot=1)

    controller = threading.Thread(target=add)
    controller.start()
    removed = remove(store, Blobs(store.database), KEY)
    controller.join()
    assert store.jobs.find_one({}) is None
    assert removed == 3

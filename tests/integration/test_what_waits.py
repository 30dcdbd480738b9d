"""A supervisor remembers for a moment which experiments have jobs waiting, and is never held up by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hyperfarm.jobs import Waiting
from hyperfarm.store import Store
from hyperfarm.worker.slot import Slot
from hyperfarm.worker.supervisor import Supervisor, WorkerOptions
from tests.making import queue


@pytest.fixture
def asked() -> list[None]:
    return []


@pytest.fixture
def supervisor(store: Store, monkeypatch: pytest.MonkeyPatch, asked: list[None]) -> Iterator[Supervisor]:
    """One that serves every experiment, and notes each time it asks which have jobs waiting."""
    ask = store.waiting

    def noted() -> Waiting:
        asked.append(None)
        return ask()

    monkeypatch.setattr(store, "waiting", noted)
    monkeypatch.setattr("hyperfarm.worker.supervisor.WAITING_KNOWN_S", 3600.0)
    made = Supervisor(store, WorkerOptions())
    monkeypatch.setattr(made.codes, "may_serve", lambda key: True)
    yield made
    made.wakeup.close()


def take(supervisor: Supervisor, slot: Slot) -> tuple[str | None, int] | None:
    claim = supervisor._try_to_claim(slot)
    return None if claim is None else (claim.exp_key, claim.tid)


def test_while_nothing_else_waits_a_slot_claims_without_asking(
    supervisor: Supervisor, store: Store, asked: list[None]
) -> None:
    tids = queue(store, 5, "a")
    (slot,) = supervisor.slots
    slot.loaded = ("a", "revision")
    assert [take(supervisor, slot) for _ in tids] == [("a", tid) for tid in tids]
    assert len(asked) == 1


def test_with_other_code_loaded_or_other_jobs_waiting_it_asks(
    supervisor: Supervisor, store: Store, asked: list[None]
) -> None:
    queue(store, 5, "a")
    (slot,) = supervisor.slots
    for loaded in (None, ("b", "revision")):
        slot.loaded = loaded
        assert take(supervisor, slot) is not None
    queue(store, 5, "b")
    for _ in range(2):
        assert take(supervisor, slot) is not None
    assert len(asked) == 4


def test_what_is_not_remembered_is_found_at_once(supervisor: Supervisor, store: Store) -> None:
    (slot,) = supervisor.slots
    slot.loaded = ("a", "revision")
    assert take(supervisor, slot) is None
    (first,) = queue(store, 1, "a")
    assert take(supervisor, slot) == ("a", first)
    (other,) = queue(store, 1, "b")
    assert take(supervisor, slot) == ("b", other)
    assert take(supervisor, slot) is None


def test_a_newcomer_is_seen_when_the_memory_has_faded(
    supervisor: Supervisor, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperfarm.worker.supervisor.WAITING_KNOWN_S", 0.0)
    queue(store, 9, "a")
    (slot,) = supervisor.slots
    slot.loaded = ("a", "revision")
    assert take(supervisor, slot) is not None
    (new,) = queue(store, 1, "b")
    supervisor.shares.order(["a", "b"], loaded=None, startup_s=0.0)
    supervisor.shares.charge("a", 1000.0)
    assert take(supervisor, slot) == ("b", new)

"""The auditor finds what does not balance: books that balance are forged in every way, one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from hyperfarm.blobs import Blobs
from hyperfarm.jobs import JobState
from hyperfarm.store import Store
from tests.chaos import objective
from tests.chaos.blob_books import check_blobs, check_orphans
from tests.chaos.books import Terms, balance, check_resumed
from tests.chaos.journal import Journal

KEY = "chaos"
TERMS = Terms(exp_key=KEY, max_evals=3)
MODEL, BINARY = b"a model" * 3000, bytes(1_200_000)
OK, POISON, FAILED = 0, 1, 2
"""The trials of the books: one that succeeded at its second attempt, one that kills, one that raises."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def point_that(kind: str) -> dict[str, float]:
    points = ({"x": number / 100, "y": 1.0, "n": 3.0} for number in range(10_000))
    return next(point for point in points if objective.behaviour(point) == kind)


@dataclass
class Books:
    """A small farm's database and journal; forgeries change them."""

    store: Store
    folder: Path

    def note(self, execution: str, tid: int, attempt: int, event: str, at: float, **what: Any) -> None:
        line = {"event": event, "execution": execution, "tid": tid, "attempt": attempt, **what, "at": at}
        with (self.folder / f"{execution}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def begin(self, execution: str, tid: int, attempt: int, at: float, **what: Any) -> None:
        self.note(execution, tid, attempt, "begin", at, **{"resumed": None, "steps": 0, "chain": [], **what})

    def rewrite(self, execution: str, change: Callable[[str], str]) -> None:
        file = self.folder / f"{execution}.jsonl"
        file.write_text(change(file.read_text()))

    def change(self, tid: int, **fields: Any) -> None:
        self.store.jobs.update_one(
            {"tid": tid}, {"$set": {k.replace("__", "."): v for k, v in fields.items()}}
        )

    def add(self, tid: int, kind: str, **fields: Any) -> None:
        values = {label: [value] for label, value in point_that(kind).items()}
        job = {"tid": tid, "slot": tid, "exp_key": KEY, "owner": None, "max_attempts": 3, "spec": None}
        misc = {"tid": tid, "vals": values, "idxs": {label: [tid] for label in values}}
        self.store.jobs.insert_one({**job, "misc": misc, "version": 1, **fields})

    def findings(self) -> list[str]:
        journal = Journal(self.folder)
        found = balance(self.store, journal, TERMS) + check_resumed(journal, TERMS)
        found += check_blobs(self.store, journal, TERMS) + check_orphans(self.store)
        return [finding.kind for finding in found]


def entry(attempt: int, event: str, reason: str) -> dict[str, Any]:
    return {"attempt": attempt, "event": event, "reason": reason, "token": f"t{attempt}", "worker": "w"}


@pytest.fixture
def books(store: Store, tmp_path: Path) -> Books:
    made = Books(store, tmp_path)
    blobs, loss = Blobs(store.database), objective.loss_of(point_that("ok"))
    accepted = {"token": "t2", "worker": "w"}
    chain = [["first", 2]]
    made.begin("first", OK, 1, 1.0)
    for event, at in (("checkpointing", 2.0), ("checkpointed", 3.0)):
        made.note("first", OK, 1, event, at, sha256="c2", steps=2, chain=chain)
    made.begin("second", OK, 2, 4.0, resumed="c2", steps=2, chain=chain)
    made.note("second", OK, 2, "end", 5.0, loss=loss, saved={"model.bin": sha(MODEL), "binary": sha(BINARY)})
    model = {**blobs.put(MODEL, "model.bin"), "kind": "artifact"}
    big = blobs.put(BINARY, "result.binary")
    binary = {"hyperfarm_blob": big["blob"], "sha256": big["sha256"], "size": big["size"], "holds": "bytes"}
    result = {"status": "ok", "loss": loss, "execution": "second", "binary": binary}
    history = [entry(1, "requeue", "no sign of life from worker w; its lease expired")]
    state = {"state": int(JobState.DONE), "attempt": 2, "accepted": accepted, "history": history}
    made.add(OK, "ok", **state, result=result, artifacts=[model], log=blobs.put(b"output", "log"))
    store.reports_.insert_one({"exp_key": KEY, "tid": OK, "token": "t2", "execution": "second"})

    deaths = [
        entry(attempt, "requeue" if attempt < 3 else "give up", "its process ended with exit code 3")
        for attempt in (1, 2, 3)
    ]
    for attempt in (1, 2, 3):
        made.begin(f"dead{attempt}", POISON, attempt, 10.0 + attempt)
    state = {"state": int(JobState.ERROR), "attempt": 3, "history": deaths, "result": {"status": "fail"}}
    made.add(POISON, "exit", **state, error=["AttemptsExhausted", "three times"])

    made.begin("raised", FAILED, 1, 20.0)
    made.note("raised", FAILED, 1, "end", 21.0, loss=None, saved={})
    state = {"state": int(JobState.ERROR), "attempt": 1, "accepted": {**accepted, "token": "t9"}}
    error = ["ValueError", "as this point wants it, in execution raised"]
    made.add(FAILED, "raise", **state, error=error, result={"status": "fail"})
    return made


def _duplicate(books: Books, **other: Any) -> None:
    doc = books.store.jobs.find_one({"tid": OK})
    assert doc is not None
    books.store.jobs.insert_one({**doc, "_id": ObjectId(), **other})


def _drop_blob(books: Books) -> None:
    doc = books.store.jobs.find_one({"tid": OK})
    assert doc is not None
    Blobs(books.store.database).delete([doc["log"]["blob"]])


FORGERIES: dict[str, tuple[str, Callable[[Books], Any]]] = {
    "a finished trial is missing": ("budget", lambda b: b.store.jobs.delete_one({"tid": FAILED})),
    "a trial too many": ("budget", lambda b: _duplicate(b, slot=3, tid=7)),
    "a slot outside of the budget": ("slots", lambda b: b.change(FAILED, slot=8)),
    "a running job": ("stuck", lambda b: b.change(FAILED, state=1)),
    "a waiting job": ("stuck", lambda b: b.change(FAILED, state=0)),
    "a number used twice": ("tids", lambda b: _duplicate(b, slot=3)),
    "an execution accepted twice": ("accepted", lambda b: _duplicate(b, slot=3, tid=7)),
    "accepted from nobody": ("accepted", lambda b: b.change(OK, accepted={"token": "t2"})),
    "an executed trial that is gone": ("vanished", lambda b: b.store.jobs.delete_one({"tid": FAILED})),
    "an attempt beyond the last": ("attempts", lambda b: b.change(POISON, attempt=4)),
    "given up too early": ("attempts", lambda b: b.change(POISON, max_attempts=4)),
    "an attempt that no history tells of": ("history", lambda b: b.change(OK, attempt=3)),
    "an attempt told twice": ("history", lambda b: b.change(POISON, history__1__attempt=1)),
    "more executions than claims": ("executions", lambda b: b.begin("third", OK, 2, 6.0)),
    "a death without a beginning": ("executions", lambda b: (b.folder / "dead2.jsonl").unlink()),
    "a point that cannot succeed": ("outcome", lambda b: b.change(POISON, state=2)),
    "a wrong loss": ("loss", lambda b: b.change(OK, result__loss=0.5)),
    "another loss in the journal": (
        "journal",
        lambda b: b.rewrite("second", lambda text: text.replace('"loss": ', '"loss": 1')),
    ),
    "an unknown execution": ("journal", lambda b: b.change(OK, result__execution="nobody")),
    "an execution without an end": (
        "journal",
        lambda b: b.rewrite("second", lambda text: text.splitlines()[0] + "\n"),
    ),
    "an execution of an attempt that was cut off": (
        "journal",
        lambda b: b.change(OK, result__execution="first"),
    ),
    "a torn journal": ("journal", lambda b: b.rewrite("dead1", lambda text: text[:30])),
    "an error that the point does not have": (
        "unjust",
        lambda b: b.change(FAILED, error=["OSError", "MongoDB refused storing model.bin"]),
    ),
    "attempts lost by an error of the worker": (
        "burnt",
        lambda b: b.change(POISON, history__1__reason="an error in the worker: OSError: no space"),
    ),
    "reports of another execution": (
        "reports",
        lambda b: b.store.reports_.insert_one(
            {"exp_key": KEY, "tid": OK, "token": "t2", "execution": "first"}
        ),
    ),
    "a blob that is gone": ("blob", _drop_blob),
    "a damaged blob": (
        "blob",
        lambda b: b.store.database["farm.chunks"].update_one({}, {"$set": {"data": b"x"}}),
    ),
    "another model than was saved": (
        "saved",
        lambda b: b.rewrite("second", lambda text: text.replace(sha(MODEL), sha(b"other"))),
    ),
    "a model that the document does not name": ("saved", lambda b: b.change(OK, artifacts=[])),
    "a blob of nobody": ("orphan", lambda b: Blobs(b.store.database).put(b"x", "x")),
    "a chunk without a file": (
        "orphan",
        lambda b: b.store.database["farm.chunks"].insert_one({"files_id": ObjectId(), "n": 0}),
    ),
    "a stale report": (
        "orphan",
        lambda b: b.store.reports_.insert_one(
            {"exp_key": KEY, "tid": OK, "token": "t1", "execution": "first"}
        ),
    ),
    "a checkpoint that nobody stored": (
        "checkpoint",
        lambda b: b.rewrite("second", lambda text: text.replace('"resumed": "c2"', '"resumed": "c9"')),
    ),
    "a checkpoint with another chain": (
        "checkpoint",
        lambda b: b.rewrite("second", lambda text: text.replace('"steps": 2', '"steps": 3')),
    ),
    "a confirmed checkpoint that was not resumed": (
        "checkpoint",
        lambda b: b.rewrite("second", lambda text: text.replace('"resumed": "c2"', '"resumed": null')),
    ),
}


def test_books_that_balance_have_no_findings(books: Books) -> None:
    assert books.findings() == []


@pytest.mark.parametrize("forgery", FORGERIES)
def test_the_forgery_is_found(books: Books, forgery: str) -> None:
    kind, forge = FORGERIES[forgery]
    forge(books)
    assert kind in books.findings()


def test_an_older_checkpoint_than_the_last_confirmed_one_is_found(books: Books) -> None:
    for event, at in (("checkpointing", 3.2), ("checkpointed", 3.4)):
        books.note("first", OK, 1, event, at, sha256="c3", steps=3, chain=[["first", 2], ["first", 3]])
    assert books.findings() == ["checkpoint"]


def test_an_unconfirmed_checkpoint_may_be_resumed_or_not(books: Books) -> None:
    books.note("first", OK, 1, "checkpointing", 3.2, sha256="c3", steps=3, chain=[["first", 2], ["first", 3]])
    assert books.findings() == []


def test_a_full_disk_excuses_an_error_only_where_disks_were_filled(books: Books) -> None:
    books.change(FAILED, error=["OSError", "[Errno 28] No space left on device"])
    assert books.findings() == ["unjust"]
    filled = Terms(exp_key=KEY, max_evals=3, disks_filled=True)
    assert balance(books.store, Journal(books.folder), filled) == []

"""The marks of the local copy follow every document that is put in or dropped; no database takes part."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfarm.jobs import is_failed, is_ok
from hyperfarm.values import is_number
from hyperfarm.view import View


def a_job(tid: int, state: int, slot: int | None, loss: Any, status: str) -> dict[str, Any]:
    slotted = {} if slot is None else {"slot": slot}
    return {"tid": tid, "state": state, "result": {"status": status, "loss": loss}, **slotted}


docs = st.builds(
    a_job,
    tid=st.integers(0, 6),
    state=st.sampled_from([0, 1, 2, 2, 2, 2, 2, 3, 4]),
    slot=st.none() | st.integers(0, 5),
    loss=st.sampled_from([0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, math.nan, None, "bad"]),
    status=st.sampled_from(["ok", "ok", "ok", "ok", "fail", "new"]),
)
steps = st.lists(
    st.lists(docs, max_size=4) | st.lists(st.integers(0, 6), min_size=1, max_size=3), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_the_marks_are_those_of_the_documents(several: list[list[Any]]) -> None:
    view = View(None, "e")
    jobs: dict[int, dict[str, Any]] = {}
    for step in several:
        if step and isinstance(step[0], int):
            view.forget(step)
            for tid in step:
                jobs.pop(tid, None)
        else:
            view.put(step)
            jobs |= {doc["tid"]: doc for doc in step}
        held = [jobs[tid] for tid in sorted(jobs)]
        assert [id(doc) for doc in view.jobs()] == [id(doc) for doc in held]
        assert {doc["tid"] for doc in view.unfinished()} == {doc["tid"] for doc in held if doc["state"] < 2}
        slots: dict[int, set[int]] = {}
        for doc in held:
            if "slot" in doc:
                slots.setdefault(doc["slot"], set()).add(doc["tid"])
        assert view.slots() == slots
        assert view.count_failed() == sum("slot" in doc and is_failed(doc) for doc in held)
        numbered = [doc for doc in held if is_ok(doc) and is_number(doc["result"]["loss"])]
        best = min(numbered, key=lambda doc: (doc["result"]["loss"], doc["tid"]), default=None)
        assert view.best() is best


def test_an_unknown_job_is_forgotten_without_a_word() -> None:
    view = View(None, "e")
    view.forget([1, 2])
    assert view.jobs() == []
    assert view.best() is None

"""Keeping the models of the best trials only: whatever finishes in whatever order, the best one has its model."""

from __future__ import annotations

import math
import random
import threading
from typing import Any

import pytest
from bson import ObjectId
from pymongo.collection import Collection

from hyperfarm.blobs import Blobs
from hyperfarm.jobs import Claim, JobState
from hyperfarm.store import Store, new_token
from tests.making import KEY, claim, queue, stored, watched


def refs(*kinds: str) -> list[dict[str, Any]]:
    """References as `Blobs.put_for` makes them, to blobs that nobody needs here."""
    named = {f"{kind} {number}": kind for number, kind in enumerate(kinds)}
    return [{"name": name, "kind": kind, "blob": ObjectId()} for name, kind in named.items()]


def done(
    store: Store,
    loss: float,
    *kinds: str,
    exp_key: str | None = KEY,
    status: str = "ok",
    state: JobState = JobState.DONE,
) -> dict[str, Any]:
    """A finished trial with files of these kinds (default: a model); return its document."""
    queue(store, 1, exp_key, first_slot=store.jobs.count_documents({}))
    held = claim(store, exp_key)
    fields = {"result": {"status": status, "loss": loss}, "artifacts": refs(*(kinds or ("model",)))}
    store.finish(held, state, fields)
    return doc_of(store, held)


def doc_of(store: Store, held: Claim) -> dict[str, Any]:
    doc = stored(store, held)
    assert doc is not None
    return doc


def with_model(store: Store, exp_key: str | None = KEY) -> list[int]:
    """The trials that have a model, by tid."""
    query = {"exp_key": exp_key, "artifacts.kind": "model"}
    return [doc["tid"] for doc in store.jobs.find(query).sort("tid")]


def models_of(*docs: dict[str, Any]) -> list[ObjectId]:
    return [one["blob"] for doc in docs for one in doc["artifacts"] if one["kind"] == "model"]


def test_all_but_the_best_lose_their_models(store: Store) -> None:
    third, first, second, fourth = (done(store, loss) for loss in (3.0, 1.0, 2.0, 4.0))
    assert store.prune_models(KEY, 2) == models_of(third, fourth)
    assert with_model(store) == [first["tid"], second["tid"]]
    assert store.prune_models(KEY, 2) == []
    assert store.prune_models(KEY, 1) == models_of(second)


@pytest.mark.parametrize(("keep", "left"), [(0, 0), (1, 1), (3, 3), (4, 3), (1000, 3)])
def test_how_many_are_kept(store: Store, keep: int, left: int) -> None:
    for loss in (1.0, 2.0, 3.0):
        done(store, loss)
    assert len(store.prune_models(KEY, keep)) == 3 - left
    assert with_model(store) == [0, 1, 2][:left]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_order_the_lowest_losses_so_far_have_their_models(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    docs: list[dict[str, Any]] = []
    for _ in range(12):
        docs.append(done(store, rng.choice([1, 2.5, 2.5, -3, 0, 1e300, math.inf])))
        store.prune_models(KEY, 3)
        ranked = sorted(docs, key=lambda doc: (doc["result"]["loss"], doc["tid"]))
        assert with_model(store) == sorted(doc["tid"] for doc in ranked[:3])
        assert store.best_job(KEY)["tid"] == ranked[0]["tid"]


def test_of_equal_losses_the_earliest_trials_are_kept(store: Store) -> None:
    docs = [done(store, 1.0) for _ in range(5)]
    assert store.prune_models(KEY, 2) == models_of(*docs[2:])
    assert store.best_job(KEY)["tid"] == docs[0]["tid"] == with_model(store)[0]


def test_what_has_no_rank_is_neither_counted_nor_touched(store: Store) -> None:
    """A worker does not store the model of such a trial at all; those of another making stay as they are."""
    others = [
        done(store, math.nan),
        done(store, -5.0, status="fail"),
        done(store, -5.0, state=JobState.ERROR),
        done(store, -9.0, "artifact"),
        done(store, "low"),  # type: ignore[arg-type]
        done(store, -9.0, exp_key="other"),
        done(store, -9.0, exp_key=None),
    ]
    good, better = done(store, 2.0), done(store, 1.0)
    assert store.prune_models(KEY, 1) == models_of(good)
    for doc in [*others, better]:
        after = store.jobs.find_one({"_id": doc["_id"]})
        assert after is not None
        assert (after["version"], after["artifacts"]) == (doc["version"], doc["artifacts"])
        assert "models_removed" not in after


@pytest.mark.parametrize(("low", "high"), [(-math.inf, -1e308), (1e308, math.inf), (1, 1.5), (-2, -1)])
def test_infinities_and_whole_numbers_rank_as_numbers(store: Store, low: float, high: float) -> None:
    worse, better = done(store, high), done(store, low)
    assert store.prune_models(KEY, 1) == models_of(worse)
    assert with_model(store) == [better["tid"]]


def test_readers_are_told_and_other_files_stay(store: Store) -> None:
    best, worse = done(store, 1.0), done(store, 2.0, "artifact", "model", "artifact")
    store.prune_models(KEY, 1)
    after = store.job(KEY, worse["tid"])
    assert after is not None
    assert after["version"] == worse["version"] + 1
    assert after["models_removed"] is True
    assert [one["name"] for one in after["artifacts"]] == ["artifact 0", "artifact 2"]
    changed = {"version", "models_removed", "artifacts"}
    assert {key: worse[key] for key in worse.keys() - changed} == {
        key: after[key] for key in after.keys() - changed
    }
    assert store.job(KEY, best["tid"]) == best
    store.prune_models(KEY, 1)
    assert store.job(KEY, worse["tid"]) == after, "a second time changes nothing"


def test_a_trial_with_two_models_counts_once_and_loses_both(store: Store) -> None:
    docs = [done(store, loss, "model", "artifact", "model") for loss in (1.0, 2.0, 3.0)]
    assert store.prune_models(KEY, 2) == models_of(docs[2])
    assert len(models_of(docs[2])) == 2


def test_running_trials_are_not_touched(store: Store) -> None:
    """A trial that another attempt makes anew may still bear the model of before."""
    held = claim_new(store)
    store.jobs.update_one({"_id": held.job_id}, {"$set": {"artifacts": refs("model")}})
    finished = done(store, 1.0)
    assert store.prune_models(KEY, 0) == models_of(finished)
    assert len(models_of(doc_of(store, held))) == 1


def claim_new(store: Store) -> Claim:
    queue(store, 1, first_slot=store.jobs.count_documents({}))
    return claim(store)


def test_many_workers_at_once_keep_exactly_the_best(store: Store) -> None:
    """Each stores a result and removes what it pushed out; the best trial never lacks its model."""
    keep, count = 3, 80
    queue(store, count)
    losses = [random.Random(1).choice([0.5, 1.0, 2.0, 3.0, 5.0]) + n % 3 for n in range(count)]
    made: dict[int, ObjectId] = {}
    pruned: list[ObjectId] = []
    lacking: list[dict[str, Any]] = []
    errors: list[Exception] = []
    ended = threading.Event()

    def work() -> None:
        while held := store.claim(KEY, worker="w", owner="w:1", token=new_token(), lease_s=60.0):
            (ref,) = refs("model")
            made[held.tid] = ref["blob"]
            result = {"status": "ok", "loss": losses[held.tid]}
            store.finish(held, JobState.DONE, {"result": result, "artifacts": [ref]})
            pruned.extend(store.prune_models(KEY, keep))

    def look() -> None:
        while not ended.is_set():
            best = store.best_job(KEY)
            if best is not None and not best["artifacts"]:
                lacking.append(best)

    def guarded(body: Any) -> None:
        try:
            body()
        except Exception as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(work,), daemon=True) for _ in range(5)]
    reader = threading.Thread(target=guarded, args=(look,), daemon=True)
    for thread in (*workers, reader):
        thread.start()
    for thread in workers:
        thread.join(120)
    ended.set()
    reader.join(30)
    assert not errors
    assert not lacking
    ranked = sorted(range(count), key=lambda tid: (losses[tid], tid))
    assert with_model(store) == sorted(ranked[:keep])
    assert set(pruned) == {made[tid] for tid in ranked[keep:]}
    assert {doc["version"] for doc in store.jobs.find({"artifacts.kind": "model"})} == {2}


def test_of_two_at_once_one_takes_a_model_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between finding a trial and taking its model away, another worker does the same."""
    done(store, 1.0)
    worse = done(store, 2.0)
    update_one, others = Collection.update_one, [lambda: store.prune_models(KEY, 1)]
    taken: list[list[ObjectId]] = []

    def second_in_between(self: Any, *args: Any, **options: Any) -> Any:
        while others:
            taken.append(others.pop()())
        return update_one(self, *args, **options)

    monkeypatch.setattr(Collection, "update_one", second_in_between)
    taken.append(store.prune_models(KEY, 1))
    assert taken == [models_of(worse), []]
    assert store.jobs.find_one({"_id": worse["_id"]})["version"] == worse["version"] + 1


def test_the_cost_does_not_grow_with_the_trials(store: Store) -> None:
    """What has lost its model is in the index `models` no more."""
    for loss in range(40):
        done(store, float(loss))
    store.prune_models(KEY, 2)
    done(store, 0.5)
    with watched(store) as seen:
        assert len(store.prune_models(KEY, 2)) == 1
    found = [one for one in seen if one["op"] == "query"]
    assert len(found) == 1
    assert found[0]["keysExamined"] <= 4
    assert found[0]["docsExamined"] <= 4
    assert not found[0].get("hasSortStage"), "the index has the order"


def test_pruned_blobs_can_be_deleted_and_those_of_the_best_read(store: Store) -> None:
    blobs = Blobs(store.database)
    kept = []
    for loss in (2.0, 1.0):
        held = claim_new(store)
        ref = blobs.put_for(held, f"model {loss}".encode(), "model.keras", "model")
        store.finish(held, JobState.DONE, {"result": {"status": "ok", "loss": loss}, "artifacts": [ref]})
        kept.append(ref)
    blobs.delete(store.prune_models(KEY, 1))
    assert store.database["farm.files"].distinct("_id") == [kept[1]["blob"]]
    assert blobs.read(store.best_job(KEY)["artifacts"][0]) == b"model 1.0"

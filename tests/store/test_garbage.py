"""gc: what nothing refers to is found and removed; what is, or can still be, referred to stays whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperfarm import embedded
from hyperfarm.blobs import REF, Blobs, blob_ids
from hyperfarm.garbage import collecting
from hyperfarm.garbage_kinds import UNFENCED_S, Garbage, batches
from hyperfarm.store import Store
from tests.garbage_in_use import (
    IN_USE,
    a_copy_of_the_job,
    assert_whole,
    everything_in_use,
    hyperopts_attachments,
    running,
)
from tests.garbage_making import (
    BIG,
    GARBAGE,
    age,
    broken_upload,
    collect,
    contents,
    cut_off_attempt,
    file_of,
    finish,
    id_made,
    look,
    next_claim,
    put,
    silent_workers,
    told,
)
from tests.making import KEY, claim, job, queue, watched


@pytest.fixture
def blobs(store: Store) -> Blobs:
    return Blobs(store.database)


@pytest.fixture
def stopped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's clock stands still, at a whole second."""
    moment = store.now().replace(microsecond=0)
    monkeypatch.setattr(store, "now", lambda: moment)


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_found_and_removed_and_nothing_else(store: Store, blobs: Blobs, kind: str) -> None:
    make, expected = GARBAGE[kind]
    everything_in_use(store, blobs)
    before = contents(store)
    make(store, blobs)
    assert not told(look(store, 2 * UNFENCED_S)).keys() - {"worker"}, "it is younger than that"
    full = contents(store)
    assert told(look(store)) == expected
    assert contents(store) == full, "looking removes nothing"
    assert told(collect(store)) == expected
    assert look(store) == Garbage()
    left = contents(store)
    assert all(set(ids) <= set(left[name]) for name, ids in before.items()), "all that was in use"
    assert sum(map(len, left.values())) < sum(map(len, full.values()))
    assert_whole(store, blobs)


def test_nothing_of_the_garbage_is_left_in_any_collection(store: Store, blobs: Blobs) -> None:
    for make, _ in GARBAGE.values():
        make(store, blobs)
        store.jobs.delete_many({})
        store.experiments_.delete_many({})
    age(store, UNFENCED_S + 5)
    collect(store)
    assert contents(store).keys() <= {"job_ids", "workers", "news"}


def test_sizes_are_told(store: Store, blobs: Blobs) -> None:
    cut_off_attempt(store, blobs)
    broken_upload(store, 30, 20)
    sizes = {row.what: row.size for row in look(store).rows()}
    assert (sizes["model"], sizes["attachment"], sizes["upload"]) == (3000, 1, 2000)


# ---- what is not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IN_USE)
def test_what_is_in_use_is_left_alone(store: Store, blobs: Blobs, kind: str) -> None:
    IN_USE[kind](store, blobs)
    before = contents(store)
    assert look(store) == Garbage()
    collect(store)
    assert contents(store) == before
    assert_whole(store, blobs)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("bucket", ["farm", "fs"])
def test_an_upload_while_a_trial_runs_may_be_that_trials(store: Store, bucket: str) -> None:
    held = next_claim(store)
    upload = broken_upload(store, 9999, UNFENCED_S - 1, bucket=bucket)
    assert told(look(store)) == {}
    assert [one.id for one in look(store).waiting] == [upload]
    assert told(collect(store)) == {}
    assert store.database[f"{bucket}.chunks"].count_documents({}) == 2
    finish(store, held)
    assert told(collect(store)) == {"upload": 1}
    assert not store.database[f"{bucket}.chunks"].count_documents({})


def test_a_foreign_workers_trial_counts_as_running(store: Store) -> None:
    store.insert_jobs([job(store.new_tids(1)[0], state=1, owner=["old-host", 7])])
    broken_upload(store, 10)
    assert told(look(store)) == {}


@pytest.mark.usefixtures("stopped")
def test_an_upload_that_stands_still_is_garbage_though_trials_run(store: Store) -> None:
    next_claim(store)
    broken_upload(store, 9999, UNFENCED_S)
    assert told(collect(store)) == {"upload": 1}


@pytest.mark.usefixtures("stopped")
def test_code_that_is_not_referred_to_yet_is_left_alone(store: Store, blobs: Blobs) -> None:
    blobs.put(b"v1", "bundle", exp_key=KEY, kind="bundle")
    age(store, UNFENCED_S - 1)
    assert told(collect(store)) == {}
    assert [row.what for row in look(store).waiting_rows()] == ["bundle"]
    age(store, UNFENCED_S)
    assert told(collect(store)) == {"bundle": 1}


# ---- ages ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("age_s", "found"), [(99, False), (99.99, False), (100, True), (9999, True), (-300, False)]
)
def test_files_count_from_the_limit_on(store: Store, blobs: Blobs, age_s: float, found: bool) -> None:
    cut_off_attempt(store, blobs)
    age(store, age_s)
    age(store, age_s, "fs")
    expected = {"model": 1, "attachment": 1} if found else {}
    assert told(look(store, 100)) == expected
    assert told(collect(store, 100)) == expected


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("ages_s", "found"),
    [((9999, 99), False), ((9999, 100), True), ((100, 9999), True), ((9999, -300), False)],
)
def test_an_upload_is_as_old_as_its_newest_chunk(
    store: Store, ages_s: tuple[float, ...], found: bool
) -> None:
    broken_upload(store, *ages_s)
    assert bool(look(store, 100).uploads) is found
    assert bool(collect(store, 100).uploads) is found


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(("ages_s", "found"), [((9999, 99), False), ((9999, 100), True)])
def test_reports_of_an_attempt_are_as_old_as_the_newest(
    store: Store, ages_s: tuple[float, ...], found: bool
) -> None:
    held = next_claim(store)
    store.add_reports(held, [{"_id": id_made(store, age_s), "loss": 1.0} for age_s in ages_s])
    store.release(held, "why not")
    assert bool(look(store, 100).reports) is found
    collect(store, 100)
    assert store.reports_.count_documents({}) == (0 if found else 2)


def test_with_zero_also_what_a_fast_clock_dated_into_the_future_counts(store: Store, blobs: Blobs) -> None:
    cut_off_attempt(store, blobs)
    age(store, -600)
    broken_upload(store, -600)
    assert told(collect(store)).keys() == {"model", "attachment", "report", "upload"}
    assert look(store) == Garbage()


@pytest.mark.parametrize("older_than_s", [1e9, 1e15, 1e300])
def test_an_age_beyond_all_calendars(store: Store, blobs: Blobs, older_than_s: float) -> None:
    cut_off_attempt(store, blobs)
    assert told(look(store, older_than_s)) == {}


def test_a_worker_that_comes_back_to_life_in_between_stays(store: Store) -> None:
    silent_workers(store, None)  # type: ignore[arg-type]
    with collecting(store) as collector:
        found = collector.look()
        assert len(found.workers) == 2
        store.heartbeat("gone", {})
        collector.remove(found)
    assert set(store.workers_.distinct("_id")) == {"gone", "alive"}


# ---- one experiment, another server, many trials ---------------------------------------------------------------


def test_one_experiment_is_collected_and_no_other(store: Store, blobs: Blobs) -> None:
    for key in (KEY, "other", None):
        queue(store, 1, key)
        held = claim(store, key)
        put(blobs, held)
        blobs.put_attachment(held, "a", b"x")
        store.add_reports(held, [{"loss": 1.0}])
        store.release(held, "why not")
    hyperopts_attachments(store, blobs)
    broken_upload(store, 9999)
    silent_workers(store, blobs)
    expected = {"model": 1, "attachment": 1, "report": 1}
    assert told(collect(store, exp_keys=["no such"])) == {}
    assert told(collect(store, exp_keys=[KEY])) == expected
    assert told(collect(store, exp_keys=[None])) == expected
    rows = [(row.what, row.exp_key) for row in look(store).rows()]
    assert rows == [("upload", ""), ("worker", ""), *((what, "other") for what in sorted(expected))]
    assert store.database["fs.files"].count_documents({}) == 6


def test_a_copy_in_another_experiment_keeps_the_blobs_of_this_one(store: Store, blobs: Blobs) -> None:
    a_copy_of_the_job(store, blobs)
    assert look(store, exp_keys=[KEY]) == Garbage()


def test_on_a_standalone_server(tmp_path: Path) -> None:
    with embedded.throwaway(tmp_path, replica_set=False) as server:
        alone = Store.open(server.url)
        blobs = Blobs(alone.database)
        cut_off_attempt(alone, blobs)
        running(alone, blobs)
        before = contents(alone)
        assert told(collect(alone)) == {"model": 1, "attachment": 1, "report": 2}
        assert sum(map(len, before.values())) - sum(map(len, contents(alone).values())) == 6
        alone.close()


def test_an_empty_database(store: Store) -> None:
    assert look(store) == collect(store) == Garbage()


def test_the_number_of_statements_does_not_grow_with_the_trials(store: Store, blobs: Blobs) -> None:
    def fill(count: int) -> None:
        tids = store.new_tids(count)
        files = [file_of(store, tid, token) for tid in tids for token in (f"t{tid}", f"dead{tid}")]
        store.database["farm.files"].insert_many(files)
        docs = [
            job(tid, state=2, accepted={"token": f"t{tid}"}, artifacts=[{"blob": file["_id"]}])
            for tid, file in zip(tids, files[::2], strict=True)
        ]
        store.jobs.insert_many(docs)
        store.reports_.insert_many([{"exp_key": KEY, "tid": tid, "token": f"dead{tid}"} for tid in tids])

    counts = []
    for count in (10, 90):
        fill(count)
        with watched(store) as seen:
            garbage = look(store)
        assert (len(garbage.blobs), sum(one.number for one in garbage.reports)) == (count, count)
        counts.append(len([one for one in seen if one["op"] != "getmore"]))
        assert not any("COLLSCAN" in one.get("planSummary", "") for one in seen if ".chunks" in one["ns"])
        collect(store)
    assert counts[0] == counts[1]


def test_batches_are_bounded_in_number_and_bytes() -> None:
    assert [len(some) for some in batches(range(1201))] == [500, 500, 201]
    sizes = [300 << 20, 1, 200 << 20, 100 << 20, 5]
    assert list(batches(sizes, lambda size: size)) == [[300 << 20], [1, 200 << 20], [100 << 20, 5]]
    assert list(batches([])) == []


def test_blobs_within_a_big_result_are_among_its_blobs(store: Store, blobs: Blobs) -> None:
    """So that a worker whose result is not kept removes them too."""
    held = next_claim(store)
    stored = blobs.externalise({**BIG, "parts": 3.0, "more": [BIG["raw"]]}, held)
    assert sorted(blob_ids(stored)) == sorted(store.database["farm.files"].distinct("_id"))
    assert blobs.internalise(stored) == {**BIG, "parts": 3.0, "more": [BIG["raw"]]}
    small = blobs.externalise({"status": "ok", "loss": 1.0, "parts": 3.0, "text": BIG["text"]}, held)
    assert small["parts"] == 3.0
    assert blob_ids(small) == [small[REF]]

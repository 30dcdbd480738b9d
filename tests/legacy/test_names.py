"""Every name of hyperopt.mongoexp: the same small programs under hyperopt 0.2.7 and under ours say the same."""
# ruff: noqa: E501  (programs read better with what they tell in one line)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Both = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
TRIALS = """
from hyperopt.base import *
import numpy as np

def trial(tid, loss=None, key="k", state=2, status="ok", **result):
    result = dict(result, status=status)
    if loss is not None:
        result["loss"] = loss
    return {"state": state, "tid": tid, "spec": None, "result": result,
            "misc": {"tid": tid, "cmd": ["domain_attachment", "FMinIter_Domain"], "workdir": None,
                     "idxs": {"x": [tid], "off": []}, "vals": {"x": [tid / 2], "off": []}},
            "exp_key": key, "owner": None, "version": 0, "book_time": None, "refresh_time": None}

def look(t):
    return {"len": len(t), "tids": sorted(t.tids), "losses": sorted(map(repr, t.losses())),
            "statuses": sorted(t.statuses()), "results": sorted(map(repr, t.results)),
            "specs": t.specs, "vals": sorted(map(repr, (m["vals"] for m in t.miscs))),
            "iterated": sorted(one["tid"] for one in t), "trials": len(t.trials)}
"""
PROGRAMS = {
    "addresses": """
told["urls"] = [parse_url(one) for one in (
    "mongo://hyperopt:foobar@127.0.0.1:27017/db/jobs", "mongo://h:1/db/jobs",
    "mongo://u:p@h:27017/db/jobs?authSource=admin", "mongo+ssh://h:2/db/coll")]
told["bad"] = [raised(parse_url, one) for one in ("mongo://h:1/db", "mongo://h:1", "mongo://h:1/a/b/c")]
open("pw", "w").write("secret\\n")
told["file"] = parse_url("mongo://u@h:1/db/jobs", "pw")
told["str"] = [as_mongo_str("h:1/db"), as_mongo_str("mongo://h:1/db")]
connection, tunnel, database, collection = connection_from_string(url)
told["connection"] = [tunnel, database.name == url.split("/")[3], collection.name, connection[database.name] == database]
told["scheme"] = raised(connection_from_string, "ftp://h:1/db/jobs") is not None
""",
    "exceptions": """
from hyperopt.base import InvalidTrial
told["invalid"] = issubclass(InvalidMongoTrial, InvalidTrial)
told["all"] = [issubclass(one, Exception) for one in (OperationFailure, DomainSwapError, Shutdown, WaitQuit, ReserveTimeout)]
told["plain"] = [str(one("why")) for one in (OperationFailure, DomainSwapError, Shutdown, WaitQuit, ReserveTimeout)]
""",
    "MongoJobs": """
mj = MongoJobs.new_from_connection_str(url)
told["empty"] = [len(mj), list(mj), mj.jobs_complete(), mj.jobs_error(), mj.jobs_running(), mj.jobs_dead(), mj.jobs_queued()]
mj.create_indexes()
told["indexes"] = sorted(set(mj.jobs.index_information()) & {"exp_key_1", "result.loss_1", "book_time_1"})
told["drivers"] = sorted(mj.db.drivers.index_information())
made = mj.insert({"a": 7, "state": 0, "owner": None, "version": 0})
told["inserted"] = ["_id" in made, made["a"], len(mj)]
for state in (0, 2, 2, 3, 1):
    mj.insert({"state": state, "owner": None, "exp_key": "e", "version": 0, "MIA": state == 1})
told["states"] = [len(one) for one in (mj.jobs_complete(), mj.jobs_error(), mj.jobs_running(), mj.jobs_dead(), mj.jobs_queued())]
told["cursor"] = [len(list(mj.jobs_complete(cursor=True))), raised(mj.jobs_running, cursor=True), raised(mj.jobs_dead, cursor=True)]
told["iterated"] = sorted(job["state"] for job in mj)
job = mj.reserve("me", exp_key="e")
told["reserved"] = [job["owner"], job["state"], job["exp_key"], job["book_time"] is not None, job["version"]]
told["naive"] = job["book_time"].tzinfo
told["nothing"] = [mj.reserve("me", exp_key="e"), mj.reserve("me", exp_key="other"), mj.reserve("me", cond={"a": 8})]
told["owned"] = raised(mj.reserve, "me", cond={"owner": "you"})
other = mj.reserve(("host", 1), cond={"a": 7})
told["tuple"] = [list(other["owner"]), other["a"]]
back = mj.update(job, {"extra": [1, {"b": 2}]})
told["updated"] = [back is job, job["version"], mj.jobs.find_one({"_id": job["_id"]})["extra"]]
told["id"] = [raised(mj.update, job, {"_id": 5}), raised(mj.update, {"a": 1}, {"b": 2})]
mj.refresh(job)
told["refreshed"] = job["version"]
mj.set_attachment(job, b"blob", "name")
mj.set_attachment(job, b"new blob", "name")
mj.set_attachment(job, b"two", "second")
told["attached"] = [mj.attachment_names(job), mj.get_attachment(job, "name").decode(), len(mj.gfs.list())]
told["missing"] = [raised(mj.get_attachment, job, "no"), raised(mj.delete_attachment, job, "no")]
mj.delete_attachment(job, "second")
told["detached"] = [mj.attachment_names(job), len(mj.gfs.list()), mj.attachment_names(mj.jobs.find_one({"_id": job["_id"]}))]
mj.delete_all_error_jobs()
told["errors gone"] = len(mj)
mj.delete({"_id": made["_id"]})
told["deleted"] = len(mj)
mj.delete_all({"exp_key": "nobody"})
told["none"] = len(mj)
mj.delete_all()
told["all gone"] = [len(mj), len(mj.gfs.list())]
""",
    "handles": TRIALS
    + """
t1, t2 = MongoTrials(url, exp_key="one"), MongoTrials(url, exp_key="two")
a, b, c = t1.new_trial_ids(1), t2.new_trial_ids(2), t1.new_trial_ids(3)
told["ids"] = [len(set(a + b + c)), [type(one).__name__ for one in a]]
t1.insert_trial_docs([trial(tid, tid, "one") for tid in a + c])
t2.insert_trial_docs([trial(tid, 10, "two") for tid in b])
told["before"] = [len(t1), len(t2)]
t1.refresh(); t2.refresh()
told["after"] = [len(t1), len(t2)]
whole = MongoTrials(url)
told["whole"] = [len(whole), sorted(set(one["exp_key"] for one in whole.trials))]
lazy = MongoTrials(url, exp_key="one", refresh=False)
told["lazy"] = len(getattr(lazy, "_trials", []))
seen = t1.view(exp_key="two")
told["view"] = [len(seen), seen.handle is t1.handle, len(t1.view()), type(seen).__name__]
told["wrong key"] = raised(t1.insert_trial_doc, trial(99, 1, "two"))
by_mj = MongoTrials(MongoJobs.new_from_connection_str(url), exp_key="two")
told["by jobs"] = len(by_mj)
""",
    "reading": TRIALS
    + """
t = MongoTrials(url, exp_key="k")
told["empty"] = look(t)
told["no best"] = raised(lambda: t.best_trial)
ids = t.new_trial_ids(6)
base = ids[0]
docs = [trial(base, 5.0), trial(base + 1, 2.0, true_loss=2.5), trial(base + 2, None, status="fail"), trial(base + 3, float("nan")),
        trial(base + 4, state=0, status="new"), trial(base + 5, state=3, status="new")]
t.insert_trial_docs(docs)
t.refresh()
shift = lambda text: text
told["len"] = [len(t), [x - base for x in sorted(t.tids)], sorted(map(str, t.losses())), sorted(t.statuses()), t.specs]
told["best"] = [t.best_trial["tid"] - base, sorted(t.argmin), t.argmin["x"] == (base + 1) / 2]
told["counts"] = [[t.count_by_state_synced(s), t.count_by_state_unsynced(s)] for s in (0, 1, 2, [0, 2], (2, 3))]
told["bad state"] = [raised(t.count_by_state_unsynced, 77) is not None, raised(t.count_by_state_synced, 77)]
told["error jobs"] = t.count_by_state_unsynced(3)
told["idxs"] = [sorted(t.idxs), sorted(len(v) for v in t.vals.values())]
other = MongoTrials(url, exp_key="k")
other.insert_trial_doc(trial(other.new_trial_ids(1)[0], 1.0))
told["stale"] = len(t)
told["counted"] = [t.count_by_state_unsynced(2), t.count_by_state_synced(2)]
t.refresh_tids([base])
told["some"] = len(t)
t.refresh()
told["fresh"] = [len(t), t.best_trial["result"]["loss"]]
doc = t.handle.jobs.find_one({"tid": base})
t.handle.update(doc, {"result": {"status": "ok", "loss": 0.25}})
t.refresh_tids([base])
told["changed"] = t.best_trial["result"]["loss"]
doc = t.handle.jobs.find_one({"tid": base})
t.handle.update(doc, {"result": {"status": "ok", "loss": 0.125}})
t.refresh()
told["changed again"] = t.best_trial["result"]["loss"]
t.handle.delete({"tid": base})
t.refresh()
told["deleted"] = [len(t), t.best_trial["result"]["loss"]]
""",
    "average best": TRIALS
    + """
t = MongoTrials(url, exp_key="k")
ids = t.new_trial_ids(3)
t.insert_trial_docs([trial(tid, loss, true_loss=loss + 1) for tid, loss in zip(ids, (3.0, 1.0, 2.0))])
t.refresh()
told["average"] = float(t.average_best_error())
""",
    "deleting": TRIALS
    + """
t, other = MongoTrials(url, exp_key="k"), MongoTrials(url, exp_key="other")
for one, key in ((t, "k"), (other, "other")):
    one.insert_trial_docs([trial(tid, 1.0, key, state) for tid, state in zip(one.new_trial_ids(4), (0, 2, 2, 3))])
    one.attachments["a file"] = b"x"
t.refresh()
t.trial_attachments(t.trials[0])["note"] = b"hello"
t.delete_all(cond={"state": 3})
told["failed gone"] = [t.count_by_state_unsynced([0, 1, 2, 3]), other.count_by_state_unsynced([0, 1, 2, 3])]
t.delete_all({"state": 2})
told["done gone"] = [t.count_by_state_unsynced([0, 1, 2, 3]), len(t)]
t.delete_all()
told["mine gone"] = [len(t), t.count_by_state_unsynced([0, 1, 2, 3]), "a file" in t.attachments]
told["others stay"] = [other.count_by_state_unsynced([0, 1, 2, 3]), "a file" in other.attachments]
whole = MongoTrials(url)
whole.delete_all()
told["all gone"] = [len(whole), other.count_by_state_unsynced([0, 1, 2, 3]), len(whole.handle.gfs.list())]
""",
    "attachments": TRIALS
    + """
for key in ("k", None):
    t = MongoTrials(url, exp_key=key)
    note = told.setdefault(str(key), {})
    note["missing"] = ["a" in t.attachments, raised(lambda: t.attachments["a"])]
    t.attachments["a"] = b"abc"
    t.attachments["a"] = b"abcd"
    t.attachments["text"] = "grüße"
    note["there"] = ["a" in t.attachments, t.attachments["a"].decode(), t.attachments["text"].decode(), sorted(t.attachments)]
    del t.attachments["a"]
    note["gone"] = ["a" in t.attachments, sorted(t.attachments)]
t = MongoTrials(url, exp_key="k")
tid = t.new_trial_ids(1)[0]
t.insert_trial_doc(trial(tid, 1.0))
t.refresh()
files = t.trial_attachments(t.trials[0])
told["trial"] = ["x" in files, len(files), list(files), raised(lambda: files["x"])]
files["x"] = b"1"
files["y"] = b"22"
files["x"] = b"333"
again = MongoTrials(url, exp_key="k")
files = again.trial_attachments(again.trials[0])
told["kept"] = ["x" in files, len(files), sorted(files), sorted(files.keys()), sorted(map(bytes.decode, files.values())),
                sorted((k, v.decode()) for k, v in files.items())]
""",
    "control": TRIALS
    + """
t = MongoTrials(url, exp_key="k")
t.insert_trial_doc(trial(t.new_trial_ids(1)[0], state=0, status="new"))
job = t.handle.reserve("me")
ctrl = MongoCtrl(trials=t, current_trial=job, read_only=False)
ctrl.checkpoint()
ctrl.checkpoint({"status": "running", "loss": 4.0})
ctrl.attachments["weights"] = b"w"
told["written"] = [job["version"], t.handle.jobs.find_one({"_id": job["_id"]})["result"], ctrl.attachments["weights"].decode()]
ctrl.info("a"); ctrl.warn("b"); ctrl.error("c"); ctrl.debug("d")
quiet = MongoCtrl(trials=t, current_trial=job, read_only=True)
quiet.checkpoint({"status": "running", "loss": 9.0})
told["read only"] = t.handle.jobs.find_one({"_id": job["_id"]})["result"]["loss"]
told["trials"] = ctrl.trials is t
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ours_says_what_the_original_says(both: Both, name: str) -> None:
    theirs, ours = both(PROGRAMS[name])
    assert ours == theirs


def test_an_update_of_a_stale_document_is_refused(both: Both) -> None:
    """The original writes nothing and says nothing: its check finds the version that somebody else has written."""
    theirs, ours = both("""
mj = MongoJobs.new_from_connection_str(url)
job = mj.insert({"state": 2, "owner": None, "version": 0, "n": 0})
stale = dict(job)
mj.update(job, {"n": 1})
told["raised"] = raised(mj.update, stale, {"n": 2})
told["kept"] = mj.jobs.find_one()["n"]
""")
    assert theirs == {"raised": None, "kept": 1}
    assert ours == {"raised": "OperationFailure", "kept": 1}

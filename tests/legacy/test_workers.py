"""hyperopt's MongoWorker and fmin in one process: the same programs under hyperopt 0.2.7 and under ours."""
# ruff: noqa: E501  (programs read better with what they tell in one line)

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.legacy.conftest import HEAD as OURS_HEAD
from tests.legacy.conftest import OURS, TAIL, tell

Both = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
HEAD = """
import cloudpickle, functools, logging, os, threading, time
import numpy as np
from hyperopt import fmin, hp, rand, STATUS_OK
from hyperopt.base import Domain, JOB_STATE_DONE, JOB_STATE_NEW

def doc(t, cmd, x=3.0):
    tid = t.new_trial_ids(1)[0]
    return {"state": 0, "tid": tid, "spec": None, "result": {"status": "new"},
            "misc": {"tid": tid, "cmd": cmd, "workdir": None, "idxs": {"x": [tid], "off": []}, "vals": {"x": [x], "off": []}},
            "exp_key": t._exp_key, "owner": None, "version": 0, "book_time": None, "refresh_time": None}

def one(t):
    got = t.handle.jobs.find_one(sort=[("_id", -1)])
    return [got["state"], got["result"], "error" in got]

def serve(t, n, **more):
    worker = MongoWorker(t.handle, poll_interval=0.1, logfilename=None, **more)
    def loop():
        for _ in range(n):
            worker.run_one(reserve_timeout=30, erase_created_workdir=True)
    thread = threading.Thread(target=loop)
    thread.start()
    return thread
"""
PROGRAMS = {
    "nothing to do": """
t = MongoTrials(url, exp_key="k")
began = time.time()
told["empty"] = raised(MongoWorker(t.handle, poll_interval=0.1, logfilename=None).run_one, "me", 0.5)
told["soon"] = time.time() - began < 5
t.insert_trial_doc(doc(t, ["cpickled fn", cloudpickle.dumps(lambda spec, ctrl: {"loss": 1.0, "status": "ok"})]))
told["other key"] = raised(MongoWorker(t.handle, 0.1, exp_key="nobody", logfilename=None).run_one, "me", 0.5)
told["fields"] = [MongoWorker.poll_interval, MongoWorker.workdir, MongoWorker(t.handle).exp_key, MongoWorker(t.handle).logfilename]
""",
    "cpickled fn": """
t = MongoTrials(url, exp_key="k")
def fn(spec, ctrl):
    return {"loss": spec["x"] + 1, "status": STATUS_OK, "off": "off" in spec, "array": np.arange(3), "number": np.float32(0.5),
            "attachments": {"note": b"hello"}, "owner": list(ctrl.current_trial["owner"])}
t.insert_trial_doc(doc(t, ["cpickled fn", cloudpickle.dumps(fn)]))
MongoWorker(t.handle, 0.1, logfilename=None).run_one(("host", 7), erase_created_workdir=True)
t.refresh()
told["job"] = one(t)
told["note"] = t.trial_attachments(t.trials[0])["note"].decode()
""",
    "call evaluate": """
t = MongoTrials(url, exp_key="k")
domain = Domain(lambda x: x * 2, hp.uniform("x", 0, 9))
t.insert_trial_doc(doc(t, ["call evaluate", cloudpickle.dumps(domain)]))
MongoWorker(t.handle, 0.1, logfilename=None).run_one("me", erase_created_workdir=True)
told["job"] = one(t)
""",
    "domain_attachment by hand": """
t = MongoTrials(url, exp_key="k")
for name in ("FMinIter_Domain", "mine"):
    t.attachments[name] = cloudpickle.dumps(Domain(lambda x: (x - 1) ** 2, hp.uniform("x", 0, 9)))
    t.insert_trial_doc(doc(t, ["domain_attachment", name]))
    MongoWorker(t.handle, 0.1, logfilename=None).run_one("me", erase_created_workdir=True)
    told[name] = one(t)
""",
    "an objective that fails": """
t = MongoTrials(url, exp_key="k")
def fn(spec, ctrl):
    raise KeyError("no such thing")
t.insert_trial_doc(doc(t, ["cpickled fn", cloudpickle.dumps(fn)]))
told["raised"] = raised(MongoWorker(t.handle, 0.1, logfilename=None).run_one, "me", None, True)
got = t.handle.jobs.find_one()
told["job"] = [got["state"], "KeyError" in got["error"][0], "no such thing" in got["error"][1]]
t.refresh()
told["seen"] = [len(t), t.count_by_state_unsynced(3)]
""",
    "folders and logs": """
t = MongoTrials(url, exp_key="k")
def fn(spec, ctrl):
    logging.getLogger("mine").setLevel(logging.INFO)
    logging.getLogger("mine").warning("from the objective")
    open("left", "w").write("x")
    return {"loss": 0.0, "status": "ok", "cwd": os.getcwd()}
here = os.getcwd()
blob = cloudpickle.dumps(fn)
t.insert_trial_doc(doc(t, ["cpickled fn", blob]))
MongoWorker(t.handle, 0.1, workdir="given").run_one("me")
told["given"] = [os.path.relpath(t.handle.jobs.find_one()["result"]["cwd"], here), os.path.exists("given/left"), os.getcwd() == here]
told["logged"] = "from the objective" in open("logfile.txt").read()
t.handle.delete_all()
made = doc(t, ["cpickled fn", blob])
made["misc"]["workdir"] = "root"
t.insert_trial_doc(made)
MongoWorker(t.handle, 0.1, logfilename=None).run_one("me")
job = t.handle.jobs.find_one()
told["of the job"] = [os.path.relpath(job["result"]["cwd"], here) == os.path.join("root", str(job["_id"])), os.path.exists(job["result"]["cwd"])]
t.handle.delete_all()
t.insert_trial_doc(doc(t, ["cpickled fn", blob]))
MongoWorker(t.handle, 0.1, logfilename=None, workdir="erased").run_one("me", erase_created_workdir=True)
told["erased"] = os.path.exists("erased")
""",
    "fmin with workers in threads": """
t = MongoTrials(url, exp_key="k")
threads = [serve(t, 3), serve(t, 3)]
best = fmin(lambda x: {"loss": x ** 2, "status": "ok", "attachments": {"a": b"1"}}, hp.uniform("x", -5, 5), rand.suggest, 6, trials=t,
            rstate=np.random.default_rng(1), show_progressbar=False)
for one_thread in threads:
    one_thread.join()
told["best"] = [sorted(best), abs(t.best_trial["result"]["loss"] - best["x"] ** 2) < 1e-12]
told["done"] = [len(t), t.count_by_state_synced(2), t.count_by_state_unsynced(2), sorted(set(t.statuses()))]
told["domain"] = "FMinIter_Domain" in t.attachments
told["attached"] = all(t.trial_attachments(one)["a"] == b"1" for one in t.trials)
told["cmd"] = sorted(set(tuple(one["misc"]["cmd"]) for one in t.trials))
told["keys"] = sorted({"tid", "state", "spec", "result", "misc", "exp_key", "owner", "version", "book_time", "refresh_time"} - set(t.trials[0]))
told["naive"] = [t.trials[0]["book_time"].tzinfo, t.trials[0]["refresh_time"].tzinfo]
again = t.fmin(lambda x: {"loss": x ** 2, "status": "ok", "attachments": {"a": b"1"}}, hp.uniform("x", -5, 5), rand.suggest, 6, show_progressbar=False)
told["nothing more"] = [len(t), again == best]
""",
    "a subclass": """
class Mine(MongoTrials):
    calls = {"refresh": 0, "ids": 0, "insert": 0}
    def refresh(self):
        self.calls["refresh"] += 1
        super().refresh()
    def new_trial_ids(self, n):
        self.calls["ids"] += n
        return super().new_trial_ids(n)
    def _insert_trial_docs(self, docs):
        self.calls["insert"] += len(docs)
        for one in docs:
            one["misc"]["mine"] = "was here"
        return super()._insert_trial_docs(docs)
t = Mine(url, exp_key="k")
thread = serve(t, 4)
fmin(lambda x: x ** 2, hp.uniform("x", -5, 5), rand.suggest, 4, trials=t, show_progressbar=False)
thread.join()
t.refresh()
told["called"] = [Mine.calls["refresh"] > 2, Mine.calls["ids"] >= 4, Mine.calls["insert"] >= 4]
told["marked"] = [one["misc"]["mine"] for one in t.trials]
""",
    "no exp_key": """
t = MongoTrials(url)
thread = serve(t, 3)
fmin(lambda x: x ** 2, hp.uniform("x", -5, 5), rand.suggest, 3, trials=t, show_progressbar=False)
thread.join()
told["done"] = [len(t), [one["exp_key"] for one in t.trials], sorted(t.argmin)]
""",
    "one job by the command's helper": """
class Options:
    max_jobs, reserve_timeout, poll_interval, workdir, exp_key, last_job_timeout = 1, 1, 0.5, None, "foo", None
    mongo = url[:-5]
    def __init__(self):
        self.__dict__.update({k: v for k, v in type(self).__dict__.items() if not k.startswith("_")})
told["raised"] = raised(main_worker_helper, Options(), ())
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_ours_does_what_the_original_does(both: Both, name: str) -> None:
    theirs, ours = both(HEAD + PROGRAMS[name])
    assert ours == theirs


NAMED = """
t = MongoTrials(url, exp_key="k")
open("drivers.py", "w").write("class Driver:\\n    def __init__(self, a, b=0):\\n        self.sum = a + b\\n"
    "    def evaluate(self, spec, ctrl):\\n        return {'loss': self.sum + spec['x'], 'status': 'ok'}\\n"
    "class Alone(Driver):\\n    def __init__(self):\\n        self.sum = 100\\n"
    "def function(spec, ctrl):\\n    return {'loss': -spec['x'], 'status': 'ok'}\\n")
sys.path.insert(0, os.getcwd())
t.attachments["driver"] = cloudpickle.dumps(("drivers.Driver", (10,), {"b": 5}))
t.insert_trial_doc(doc(t, ["driver_attachment", "driver"]))
MongoWorker(t.handle, 0.1, logfilename=None).run_one("me", erase_created_workdir=True)
told["driver"] = one(t)
t.insert_trial_doc(doc(t, ["bandit_json evaluate", "drivers.Alone"]))
MongoWorker(t.handle, 0.1, logfilename=None).run_one("me", erase_created_workdir=True)
told["bandit"] = one(t)
t.insert_trial_doc(doc(t, ["token_load", "drivers.function"]))
MongoWorker(t.handle, 0.1, logfilename=None).run_one("me", erase_created_workdir=True)
told["token"] = one(t)
"""


def test_what_the_original_cannot_import_any_more(url: str, tmp_path: Path) -> None:
    """On Python 3 its look-up of names fails for every class, and its token_load returns nothing."""
    (tmp_path / "probe.py").write_text(OURS_HEAD.format(module=OURS) + HEAD + NAMED + TAIL)
    told = tell(sys.executable, tmp_path, "probe.py", url)
    results = {name: (state, result["loss"]) for name, (state, result, _) in told.items()}
    assert results == {"driver": (2, 18.0), "bandit": (2, 103.0), "token": (2, -3.0)}

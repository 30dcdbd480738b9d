"""Code reaches the workers by itself: every kind of objective, on a worker that has never seen the script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperfarm import settings
from hyperfarm.blobs import Blobs
from hyperfarm.store import Store
from tests.support import TWO_PARAMETERS, eventually, hyperfarm, line_with, started, worker

HELPER = "FACTOR = 10\ndef shift(x):\n    from lazy import offset\n    return x + offset()\n"
LAZY = "def offset():\n    return 0.5\n"
PACKAGE = {
    "mypkg/__init__.py": "",
    "mypkg/losses.py": "from .inner.deep import square\ndef loss(p):\n    return square(p['x'])\n"
    "class Loss:\n    def __init__(self, by):\n        self.by = by\n"
    "    def __call__(self, p):\n        return square(p['x']) + self.by\n",
    "mypkg/inner/__init__.py": "",
    "mypkg/inner/deep.py": "def square(x):\n    return x * x\n",
}
CASES = {
    "a function of __main__": "def f(p):\n    return shift(p['x'])\nfn = f\n",
    "a function of a module": "import objectives\nfn = objectives.f\n",
    "a function of a package": "from mypkg.losses import loss\nfn = loss\n",
    "a callable object": "from mypkg.losses import Loss\nfn = Loss(3)\n",
    "a closure": "def make(k):\n    def f(p):\n        return shift(p['x']) * k\n    return f\nfn = make(3)\n",
    "a lambda": "fn = lambda p: shift(p['x']) * FACTOR\n",
    "a partial": "import functools\ndef f(p, k):\n    return shift(p['x']) + k\nfn = functools.partial(f, k=2)\n",
}


def write_project(folder: Path, case: str, url: str) -> Path:
    for name, text in {**PACKAGE, "helper.py": HELPER, "lazy.py": LAZY}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "objectives.py").write_text("from helper import shift\ndef f(p):\n    return shift(p['x'])\n")
    script = folder / "script.py"
    script.write_text(
        "from helper import FACTOR, shift\n"
        + TWO_PARAMETERS
        + "from hyperfarm import minimize\n"
        + CASES[case]
        + "if __name__ == '__main__':\n"
        + f"    minimize(fn, space, max_evals=2, mongo={url!r}, workers=0, exp_key='travel')\n"
    )
    return script


@pytest.mark.parametrize("case", CASES)
def test_an_objective_travels(case, mongo_url, store, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    script = write_project(project, case, mongo_url)
    with worker(mongo_url, tmp_path / "elsewhere", PYTHONPATH=str(tmp_path / "nothing")):
        subprocess.run(
            [sys.executable, str(script)], check=True, timeout=100, cwd=tmp_path, env=dict(os.environ)
        )
    docs = store.find_jobs("travel")
    assert [doc["state"] for doc in docs] == [2, 2], [doc.get("traceback") for doc in docs]


def test_run_takes_a_module_and_function(mongo_url, store, tmp_path):
    write_project(tmp_path, "a lambda", mongo_url)
    (tmp_path / "mypkg" / "search.py").write_text(
        TWO_PARAMETERS + "from mypkg.losses import loss\ndef score(p):\n    return loss(p)\n"
    )
    with worker(mongo_url, tmp_path / "elsewhere"):
        hyperfarm("run", "mypkg.search:score", "--mongo", mongo_url, "--max-evals", "2", cwd=tmp_path)
    assert [doc["state"] for doc in store.find_jobs("search-score")] == [2, 2]


def test_a_folder_named_like_ours_or_a_library_beside_the_worker_does_no_harm(mongo_url, store, tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(
        TWO_PARAMETERS + "def objective(p):\n    import numpy\n    return float(numpy.abs(p['x']))\n"
    )
    trap = tmp_path / "elsewhere"
    for name in ("worker", "analysis", "numpy"):
        (trap / name).mkdir(parents=True)
        (trap / name / "__init__.py").write_text("raise RuntimeError('the wrong module')\n")
    hyperfarm("run", str(script), "--mongo", mongo_url, "--workers", "1", "--max-evals", "2", cwd=tmp_path)
    with worker(mongo_url, trap):
        hyperfarm("run", str(script), "--mongo", mongo_url, "--max-evals", "4", "--extend", cwd=tmp_path)
    assert [doc["state"] for doc in store.find_jobs("plain")] == [2] * 4


@pytest.fixture
def refused_search(mongo_url: str, tmp_path: Path):
    """A running search whose worker is started by the test, with a look at what the worker refuses."""
    script = tmp_path / "guarded.py"
    script.write_text(TWO_PARAMETERS + "def objective(p):\n    return p['x']\n")
    store = Store.open(mongo_url)

    def refusals() -> list[dict]:
        return [one for host in store.workers_.find() for one in host.get("refused", [])]

    with started("run", str(script), "--mongo", mongo_url, "--max-evals", "2") as controller:
        eventually(lambda: store.waiting().exp_keys, "a job waits")
        yield store, controller, refusals
    store.close()


def tamper_unsigned(store: Store) -> None:
    store.experiments_.update_one({"_id": "guarded"}, {"$unset": {"bundles.0.signature": ""}})


def tamper_altered(store: Store) -> None:
    """Another content, with a checksum that fits: only the signature can tell."""
    blobs = Blobs(store.database)
    entry = store.experiment("guarded")["bundles"][0]
    content = bytearray(blobs.read(entry))
    content[len(content) // 2] ^= 1
    ref = blobs.put(bytes(content), "bundle", exp_key="guarded", kind="bundle")
    changes = {f"bundles.0.{name}": ref[name] for name in ("blob", "size", "sha256")}
    store.experiments_.update_one({"_id": "guarded"}, {"$set": changes})


def tamper_swapped(store: Store) -> None:
    """A bundle that is rightly signed, for another experiment."""
    from hyperfarm.bundle import sign

    blobs = Blobs(store.database)
    entry = store.experiment("guarded")["bundles"][0]
    signature = sign(settings.farm_secret(), blobs.read(entry), "another", entry["revision"])
    store.experiments_.update_one({"_id": "guarded"}, {"$set": {"bundles.0.signature": signature}})


def tamper_python(store: Store) -> None:
    store.experiments_.update_one({"_id": "guarded"}, {"$set": {"bundles.0.python": [3, 9]}})


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (tamper_unsigned, "sign"),
        (tamper_altered, "altered"),
        (tamper_swapped, "another experiment"),
        (tamper_python, "Python 3.9"),
    ],
)
def test_a_worker_refuses_what_it_must_not_run(tamper, reason, refused_search, mongo_url, tmp_path):
    store, controller, refusals = refused_search
    tamper(store)
    with worker(mongo_url, tmp_path / "elsewhere") as host:
        told = eventually(refusals, "a refusal")
        assert told[0]["exp_key"] == "guarded"
        assert reason in told[0]["reason"]
        eventually(lambda: "guarded" not in store.jobs.distinct("exp_key", {"state": 1}), "no job runs")
        assert {doc["state"] for doc in store.find_jobs("guarded")} == {0}
        line_with(controller, reason)
        host.terminate()
        assert reason in host.communicate(timeout=20)[0]


def test_a_worker_without_the_secret_refuses_and_says_what_to_copy(refused_search, mongo_url, tmp_path):
    _, _, refusals = refused_search
    with worker(mongo_url, tmp_path / "elsewhere", HYPERFARM_CONFIG=str(tmp_path / "config")):
        told = eventually(refusals, "a refusal")
    assert "copy the file" in told[0]["reason"]


def test_other_package_versions_are_a_warning(refused_search, mongo_url, tmp_path):
    store, controller, _ = refused_search
    store.experiments_.update_one(
        {"_id": "guarded"}, {"$set": {"bundles.0.packages": [{"name": "numpy", "version": "0.0.1"}]}}
    )
    with worker(mongo_url, tmp_path / "elsewhere") as host:
        controller.wait(timeout=60)
        host.terminate()
        assert "numpy is 0.0.1 at the controller and" in host.communicate(timeout=20)[0]
    assert [doc["state"] for doc in store.find_jobs("guarded")] == [2, 2]


def test_a_module_that_the_host_lacks_is_the_hosts_lack_not_the_trials(mongo_url, store, tmp_path):
    site = tmp_path / "lib" / "site-packages"
    (site / "rare_library").mkdir(parents=True)
    (site / "rare_library" / "__init__.py").write_text("def value():\n    return 7\n")
    script = tmp_path / "needs.py"
    script.write_text(
        "import rare_library\n" + TWO_PARAMETERS + "def objective(p):\n    return rare_library.value()\n"
    )
    with started(
        "run", str(script), "--mongo", mongo_url, "--max-evals", "2", PYTHONPATH=str(site)
    ) as controller:
        with worker(mongo_url, tmp_path / "poor") as poor:
            eventually(lambda: [one for host in store.live_workers() for one in host["refused"]], "a refusal")
            poor.terminate()
            assert "rare_library" in poor.communicate(timeout=20)[0]
        assert {(doc["state"], doc["attempt"]) for doc in store.find_jobs("needs")} == {(0, 0)}
        with worker(mongo_url, tmp_path / "rich", PYTHONPATH=str(site)):
            controller.wait(timeout=60)
    assert [doc["result"]["loss"] for doc in store.find_jobs("needs")] == [7, 7]

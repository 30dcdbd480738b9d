"""Who may write to the database still cannot run code; nothing shows a password or the farm's secret.

docs/security.md says what is protected from whom. A bomb here is a pickle that makes a file when it is loaded.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import secrets
import shlex
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import bson
import hyperopt
import psutil
import pytest
from bson.raw_bson import RawBSONDocument
from gridfs import GridFS, GridFSBucket
from hyperopt import hp
from pymongo import MongoClient
from pymongo.database import Database

from hyperfarm import MongoTrials, embedded, load_result, settings
from hyperfarm.blobs import REF, Blobs
from hyperfarm.bundle import pack, sign
from hyperfarm.controller.experiment import Request, open_experiment
from hyperfarm.store import Store
from tests.making import job
from tests.support import COMMAND, TWO_PARAMETERS, descendants, eventually, hyperfarm, started, worker

SPACE = hp.uniform("x", -1, 1)
PASSWORD = "pAss/w0rd:@%of+the-farm"
Document = dict[str, Any]


class Bomb:
    """Unpickling it runs a command, which makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {shlex.quote(str(self.marker))}",)


def with_bomb(content: bytes, marker: Path) -> bytes:
    """A bundle that differs from this one in its pickle only."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["objective.pkl"] = pickle.dumps(Bomb(marker))
    manifest = json.loads(entries["manifest.json"])
    manifest["sizes"]["objective.pkl"] = len(entries["objective.pkl"])
    entries["manifest.json"] = json.dumps(manifest).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


class Farm:
    """Experiments as a controller makes them, and what a user of the database can do to them without the secret."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.blobs, self.folder = store, Blobs(store.database), folder
        folder.mkdir()

    def ran(self) -> set[str]:
        """What has run, or was unpickled: the names of the markers."""
        return {path.name for path in self.folder.iterdir()}

    def objective(self, name: str) -> Callable[[float], float]:
        """An objective that leaves the marker `name` when it runs."""
        marker = str(self.folder / name)

        def objective(x: float) -> float:
            import pathlib

            pathlib.Path(marker).touch()
            return 1.0

        return objective

    def begin(self, key: str, marker: str | None = None, *, replace_code: bool = False) -> Document:
        """Open an experiment; return the entry of its newest bundle."""
        bundle = pack(self.objective(marker or key), SPACE)
        request = Request(exp_key=key, bundle=bundle, space=SPACE, algo="rand", max_evals=9)
        if replace_code:
            request = Request(**{**vars(request), "replace_code": True})
        open_experiment(self.store, self.blobs, request)
        return self.entries(key)[-1]

    def entries(self, key: str) -> list[Document]:
        return self.store.experiment(key)["bundles"]

    def queue(self, key: str, revision: str | None, **fields: Any) -> int:
        [tid] = self.store.new_tids(1)
        doc = job(tid, key, slot=tid, attempt=0, max_attempts=1, bundle=revision)
        assert self.store.insert_jobs([{**doc, **fields}]) == {tid}
        return tid

    def set_bundles(self, key: str, entries: list[Document]) -> None:
        self.store.experiments_.update_one({"_id": key}, {"$set": {"bundles": entries}})

    def put(self, content: bytes, key: str) -> Document:
        """A blob in the bucket of the bundles, with a checksum that fits."""
        ref = self.blobs.put(content, "bundle", exp_key=key, kind="bundle")
        return {name: ref[name] for name in ("blob", "size", "sha256")}

    def bomb(self, key: str) -> Document:
        content = self.blobs.read(self.entries(key)[-1])
        return self.put(with_bomb(content, self.folder / key), key)


@pytest.fixture
def farm(store: Store, tmp_path: Path) -> Farm:
    settings.farm_secret()
    return Farm(store, tmp_path / "markers")


# ---- workers -------------------------------------------------------------------------------------------


def unsigned(farm: Farm, key: str, entry: Document) -> None:
    farm.set_bundles(key, [{name: entry[name] for name in entry if name != "signature"} | farm.bomb(key)])


def signed_with_nothing(farm: Farm, key: str, entry: Document) -> None:
    farm.set_bundles(key, [entry | farm.bomb(key) | {"signature": ""}])


def signed_with_another_secret(farm: Farm, key: str, entry: Document) -> None:
    changed = farm.bomb(key)
    signature = sign(secrets.token_bytes(32), farm.blobs.read(changed), key, entry["revision"])
    farm.set_bundles(key, [entry | changed | {"signature": signature}])


def altered(farm: Farm, key: str, entry: Document) -> None:
    farm.set_bundles(key, [entry | farm.bomb(key)])


def altered_under_its_checksum(farm: Farm, key: str, entry: Document) -> None:
    farm.set_bundles(key, [entry | {"blob": farm.bomb(key)["blob"]}])


def swapped(farm: Farm, key: str, entry: Document) -> None:
    """All of another experiment's entry, and a job that wants it."""
    other = farm.begin(f"donor of {key}")
    farm.set_bundles(key, [other])
    farm.store.jobs.update_many({"exp_key": key}, {"$set": {"bundle": other["revision"]}})


def swapped_content(farm: Farm, key: str, entry: Document) -> None:
    """Another experiment's content and signature under this one's revision."""
    other = farm.begin(f"donor of {key}")
    farm.set_bundles(key, [other | {"revision": entry["revision"]}])


def replayed_as_the_newer(farm: Farm, key: str, entry: Document) -> None:
    """The experiment's own older code under the name of its newer one, and the job as it was."""
    newer = farm.begin(key, f"{key} newer", replace_code=True)
    farm.set_bundles(key, [entry | {"revision": newer["revision"]}])
    farm.store.jobs.update_many({"exp_key": key}, {"$set": {"bundle": newer["revision"]}})


def job_of_another_experiments_bundle(farm: Farm, key: str, entry: Document) -> None:
    """The experiment's own bundle stays the newest; the job names another one that was put beside it."""
    other = farm.begin(f"donor of {key}")
    farm.set_bundles(key, [other, entry])
    farm.store.jobs.update_many({"exp_key": key}, {"$set": {"bundle": other["revision"]}})


REFUSED = {
    unsigned: "is not signed",
    signed_with_nothing: "is not signed",
    signed_with_another_secret: "another farm's secret",
    altered: "was altered",
    altered_under_its_checksum: "SHA-256",
    swapped: "belongs to another experiment",
    swapped_content: "belongs to another experiment",
    replayed_as_the_newer: "was altered",
    job_of_another_experiments_bundle: "belongs to another experiment",
}
FMIN = (unsigned, altered, swapped)


def begin_by_fmin(farm: Farm, key: str) -> Document:
    """An experiment as `hyperopt.fmin` leaves it, with bombs where hyperopt's own worker looks for its domain."""
    hyperopt.fmin(
        farm.objective(key),
        SPACE,
        algo=hyperopt.rand.suggest,
        max_evals=1,
        timeout=0.3,
        trials=MongoTrials(farm.store, exp_key=key),
        return_argmin=False,
        show_progressbar=False,
    )
    put_domain(farm, key)
    return farm.entries(key)[-1]


def put_domain(farm: Farm, key: str) -> None:
    """hyperopt 0.2.7 keeps the pickled domain in GridFS as `FMinIter_Domain`, with the exp_key beside it."""
    bomb = pickle.dumps(Bomb(farm.folder / key))
    GridFS(farm.store.database).put(bomb, filename="FMinIter_Domain", encoding="utf-8", exp_key=key)


def test_no_worker_runs_what_the_farm_has_not_signed_for_the_experiment(
    farm: Farm, mongo_url: str, tmp_path: Path
) -> None:
    reasons = {"by hyperopt's own fmin": "--trust-unsigned runs them"}
    for attack, reason in REFUSED.items():
        key = attack.__name__
        entry = farm.begin(key)
        farm.queue(key, entry["revision"])
        attack(farm, key, entry)
        reasons[key] = reason
    for attack in FMIN:
        key = f"fmin {attack.__name__}"
        entry = begin_by_fmin(farm, key)
        farm.queue(key, entry["revision"])
        attack(farm, key, entry)
        reasons[key] = REFUSED[attack]
    put_domain(farm, "by hyperopt's own fmin")
    farm.queue("by hyperopt's own fmin", None)
    honest = farm.begin("honest")
    stranger = farm.queue("honest", farm.begin("donor")["revision"])
    signed = farm.begin("signed")
    changed = farm.bomb("signed")
    signature = sign(settings.farm_secret(), farm.blobs.read(changed), "signed", signed["revision"])

    def refused() -> dict[str, str]:
        return {
            one["exp_key"]: one["reason"] for host in farm.store.live_workers() for one in host["refused"]
        }

    with worker(mongo_url, tmp_path / "host", HYPERFARM_CACHE=str(tmp_path / "cache")) as host:
        eventually(lambda: refused().keys() >= reasons.keys(), "all refusals")
        told = refused()
        assert {key: reason for key, reason in reasons.items() if reason not in told[key]} == {}
        # The same worker runs what is signed: the honest code, and a bomb that the farm's own secret has signed.
        farm.queue("honest", honest["revision"])
        eventually(lambda: "honest" in farm.ran(), "signed code runs")
        farm.set_bundles("signed", [signed | changed | {"signature": signature}])
        farm.queue("signed", signed["revision"])
        eventually(lambda: "signed" in farm.ran(), "a bomb goes off where it is unpickled")
        waits = {doc["exp_key"] for doc in farm.store.jobs.find({"state": 0})}
        assert waits == reasons.keys(), "what is refused waits for a worker that may run it"
        top = hyperfarm("top", "--once", "--mongo", mongo_url).stdout
        assert "refuse" in top
        shown = json.loads(hyperfarm("show", "altered", "--json", "--mongo", mongo_url).stdout)
        assert [one["refused"] for one in shown["workers"]], "show tells it"
        assert "was altered" in json.dumps(shown["workers"])
        host.terminate()
        printed = host.communicate(timeout=60)[0]
    for key, reason in reasons.items():
        [line] = [line for line in printed.splitlines() if f"experiment {key} is not served" in line]
        assert reason in line
    assert "Traceback" not in printed
    error = farm.store.job("honest", stranger)
    assert error["state"] == 3
    assert "has no code of revision" in json.dumps(error["error"])
    assert farm.ran() == {"honest", "signed"}


def test_a_controller_tells_that_its_bundle_was_exchanged(farm: Farm, mongo_url: str, tmp_path: Path) -> None:
    script = tmp_path / "guarded.py"
    script.write_text(TWO_PARAMETERS + "def objective(p):\n    return p['x']\n")
    command = ["run", str(script), "--mongo", mongo_url, "--max-evals", "1"]
    with started(*command):
        eventually(lambda: farm.store.waiting().exp_keys, "a job waits")
    altered(farm, "guarded", farm.entries("guarded")[0])
    done = hyperfarm(*command, "--workers", "1", check=False, HYPERFARM_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "was altered, belongs to another experiment" in done.stderr
    assert farm.ran() == set()


def test_what_a_signature_does_not_cover(farm: Farm, mongo_url: str, tmp_path: Path) -> None:
    """Code that the farm signed for this very experiment runs, also an older revision, and at any point."""
    older = farm.begin("k", "older")
    newer = farm.begin("k", "newer", replace_code=True)
    farm.set_bundles("k", [newer, older])
    tid = farm.queue("k", older["revision"])
    farm.store.jobs.update_one({"tid": tid}, {"$set": {"misc.vals.x": [99.0]}})
    with worker(mongo_url, tmp_path / "host", HYPERFARM_CACHE=str(tmp_path / "cache")):
        eventually(lambda: farm.store.job("k", tid)["state"] == 2, "the trial ends")
    assert farm.ran() == {"older"}


# ---- readers -------------------------------------------------------------------------------------------


@pytest.fixture
def mined(farm: Farm) -> Farm:
    """An experiment `k` with a bomb in every place where a reader finds a blob, bytes or text."""
    bomb = pickle.dumps(Bomb(farm.folder / "bytes"))
    text = pickle.dumps(Bomb(farm.folder / "text"), protocol=0).decode()
    entry = farm.begin("k")
    farm.set_bundles("k", [entry | farm.bomb("k") | {"name": text}])
    farm.store.experiments_.update_one({"_id": "k"}, {"$set": {"space": text, "algo": text}})
    put_domain(farm, "k")
    attachment = GridFSBucket(farm.store.database).upload_from_stream("note", bomb)

    def file(name: str, kind: str) -> Document:
        return farm.put(bomb, "k") | {"name": name, "kind": kind}

    def reference(data: bytes, holds: str) -> Document:
        ref = farm.put(data, "k")
        return {REF: ref["blob"], "size": ref["size"], "sha256": ref["sha256"], "holds": holds}

    inner = {"inner": bomb, "deep": reference(bomb, "bytes")}
    common = {
        "state": 2,
        "attempt": 1,
        "accepted": {"token": "t", "worker": text},
        "owner": text,
        "book_time": farm.store.now(),
        "refresh_time": farm.store.now(),
        "duration": 1.0,
        "artifacts": [file("model.keras", "model"), file("model.pkl", "artifact")],
        "log": file("log", "log"),
        "_attachments": [["note", attachment]],
        "notes": [text],
        "history": [
            {"token": "t", "event": "reaped", "reason": text, "worker": text, "at": farm.store.now()}
        ],
    }
    values = {
        "result": {"status": "ok", "loss": 1.0, "inline": bomb, "text": text, "big": reference(bomb, "bytes")}
    }
    whole = {"result": {"status": "ok", "loss": 2.0, **reference(bson.encode(inner), "result")}}
    failed = {"state": 3, "result": {"status": "fail"}, "error": ["Error", text], "traceback": text}
    waiting = {"checkpoint": file("checkpoint", "checkpoint") | {"attempt": 1, "at": farm.store.now()}}
    for fields in (common | values, common | whole, common | failed, waiting):
        tid = farm.queue("k", entry["revision"], **fields)
        vals = {"x": [0.5 + tid], "y": [text]}
        farm.store.jobs.update_one({"tid": tid}, {"$set": {"misc.vals": vals}})
        report = {"exp_key": "k", "tid": tid, "token": "t", "at": farm.store.now(), "step": 1, "loss": 1.0}
        farm.store.reports_.insert_one({**report, "note": text, "data": bomb})
    host = {"host": text, "pid": 1, "slots": 1, "refused": [{"exp_key": "k", "reason": text}], "paused": []}
    farm.store.heartbeat("w", {**host, "python": text, "versions": {"hyperfarm": text}, "exp_keys": None})
    return farm


READERS = (
    "ls", "ls --json", "show k", "show k --json", "show k 0", "show k 1 --json", "show k 2", "show k 3",
    "best k", "best k --json", "logs k 0", "top --once", "doctor", "gc",
    "plot k --kind history -o h.png", "plot k --kind 3d --x x --y duration -o 3d.png",
    "pull k -o model", "pull k --name model.pkl -o pickle", "pull k --name inline -o inline",
    "pull k --name big -o big", "pull k --name note -o note", "pull k --trial 1 --name deep -o deep",
    "gc --delete", "cancel k", "rm k --yes",
)  # fmt: skip


def test_no_command_unpickles_what_lies_in_the_database(mined: Farm, mongo_url: str, tmp_path: Path) -> None:
    ends = {}
    for line in READERS:
        environment = {**os.environ, "HYPERFARM_MONGO": mongo_url}
        done = subprocess.run(
            [COMMAND, *line.split()], cwd=tmp_path, env=environment, capture_output=True, timeout=100
        )
        ends[line] = done.returncode
        assert b"Traceback (most" not in done.stderr, f"{line}: {done.stderr.decode()}"
        assert mined.ran() == set(), line
    assert ends.pop("doctor") == 1, "it finds something amiss"
    assert {line: code for line, code in ends.items() if code != 0} == {}, "each has read what it was given"
    bomb = pickle.dumps(Bomb(mined.folder / "bytes"))
    for name in ("model", "pickle", "inline", "big", "note", "deep"):
        assert (tmp_path / name).read_bytes() == bomb


def test_no_function_unpickles_what_lies_in_the_database(mined: Farm, mongo_url: str) -> None:
    bomb = pickle.dumps(Bomb(mined.folder / "bytes"))
    trials = MongoTrials(mongo_url, exp_key="k")
    first, second = trials.trials[:2]
    assert load_result(first, mongo_url)["big"] == bomb
    assert load_result(second, mongo_url)["deep"] == bomb
    assert trials.trial_attachments(first)["note"] == bomb
    assert trials.best_trial["result"]["inline"] == bomb
    assert mined.ran() == set()
    pickle.loads(bomb)
    assert mined.ran() == {"bytes"}, "the bomb works"


# ---- secrets -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Server]:
    """A mongod that asks for user and password."""
    folder = tmp_path_factory.mktemp("locked")
    with embedded.throwaway(folder, replica_set=False, extra_args=["--auth"]) as server:
        with MongoClient(server.url) as client:
            client.admin.command("createUser", "farmer", pwd=PASSWORD, roles=["root"])
        yield server


@pytest.fixture
def password(locked: embedded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL without the password, which lies in a file."""
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    monkeypatch.setenv("HYPERFARM_MONGO_PASSWORD_FILE", str(file))
    url = f"mongodb://farmer@127.0.0.1:{locked.port}/farm?authSource=admin"
    monkeypatch.setenv("HYPERFARM_MONGO", url)
    return url


@pytest.fixture
def database(password: str) -> Iterator[Database]:
    """The same database for the test itself."""
    with MongoClient(password.replace("farmer@", f"farmer:{quote_plus(PASSWORD)}@")) as client:
        yield client["farm"]


def hidden(text: bytes | str) -> list[str]:
    """Which of the secrets `text` shows."""
    data = text.encode() if isinstance(text, str) else text
    secret = settings.farm_secret()
    wanted = {
        "password": PASSWORD.encode(),
        "quoted password": quote_plus(PASSWORD).encode(),
        "secret": secret,
        "secret in hex": secret.hex().encode(),
    }
    return [name for name, value in wanted.items() if value in data]


def of_process(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def family_of(*processes: subprocess.Popen) -> list[int]:
    return [pid for process in processes for pid in (process.pid, *descendants(process.pid))]


def inner_of(*processes: subprocess.Popen) -> list[int]:
    """The children that run objectives, and their guardians."""
    family = family_of(*processes)
    return [pid for pid in family if b"\0HYPERFARM_CHILD=" in b"\0" + of_process(pid, "environ")]


SLOW = """
import os, time
def objective(p):
    print("environment:", sorted(os.environ))
    while not os.path.exists({go!r}):
        time.sleep(0.05)
    if p["x"] > 0:
        raise RuntimeError("it failed")
    return {{"loss": p["x"], "status": "ok", "environment": dict(os.environ)}}
"""


def test_no_process_log_or_document_shows_a_secret(
    password: str, database: Database, locked: embedded.Server, tmp_path: Path
) -> None:
    go, script = tmp_path / "go", tmp_path / "slow.py"
    script.write_text(TWO_PARAMETERS + SLOW.format(go=str(go)))
    with (
        worker(password, tmp_path / "host", "--slots", "2") as host,
        started("run", str(script), "--max-evals", "8", "--workers", "1", "--seed", "1") as run,
    ):
        eventually(lambda: database["jobs"].count_documents({"state": 1}) == 3, "three trials run")
        eventually(lambda: len(inner_of(host, run)) == 6, "three children, three guardians")
        family, inner = family_of(host, run), inner_of(host, run)
        for pid in family:
            assert hidden(of_process(pid, "cmdline")) == []
        for pid in inner:
            environment = of_process(pid, "environ")
            assert hidden(environment) == []
            for word in (
                f":{locked.port}",
                "HYPERFARM_MONGO",
                "HYPERFARM_SECRET",
                str(tmp_path / "password"),
            ):
                assert word.encode() not in environment, word
            ports = {one.raddr.port for one in psutil.Process(pid).net_connections() if one.raddr}
            assert locked.port not in ports, "no connection to the database either"
        others = set(family) - set(inner)
        assert all(hidden(of_process(pid, "environ")) == [] for pid in others), "the file's name is enough"
        go.touch()
        printed = run.communicate(timeout=90)[0]
        host.terminate()
        printed += host.communicate(timeout=60)[0]
    assert hidden(printed) == []
    assert {doc["state"] for doc in database["jobs"].find()} == {2, 3}, "errors were stored as well"
    for line in ("ls", "show slow", "best slow --json", "logs slow 0", "doctor"):
        done = hyperfarm(*line.split(), check=False)
        assert hidden(done.stdout + done.stderr) == [], line
    raw = database.with_options(bson.CodecOptions(document_class=RawBSONDocument))
    for name in database.list_collection_names():
        for doc in raw[name].find():
            assert hidden(doc.raw) == [], name
    for file in database["farm.files"].find({"metadata.kind": "bundle"}):
        content = GridFSBucket(database, "farm").open_download_stream(file["_id"]).read()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                assert hidden(archive.read(name)) == [], name
    assert hidden((locked.data_dir / "mongod.log").read_bytes()) == []


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_wrong_password_is_not_shown(password: str, tmp_path: Path, debug: str) -> None:
    wrong = f"not-{PASSWORD}"
    (tmp_path / "password").write_text(wrong)
    for line in ("worker", "ls", "doctor"):
        done = hyperfarm(*line.split(), check=False, HYPERFARM_DEBUG=debug)
        printed = done.stdout + done.stderr
        assert done.returncode != 0
        assert "refuses this user" in printed, line
        assert hidden(printed) == [], line


def test_a_secret_that_others_can_read_is_not_used(farm: Farm, mongo_url: str, tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(TWO_PARAMETERS + "def objective(p):\n    return p['x']\n")
    farm.queue("k", farm.begin("k")["revision"])
    file = settings.secret_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    secret = settings.farm_secret().hex()
    file.chmod(0o640)
    done = hyperfarm("run", str(script), "--mongo", mongo_url, "--max-evals", "1", check=False)
    assert done.returncode == 2
    assert f"chmod 600 {file}" in done.stderr
    assert farm.store.experiment("plain") is None, "nothing was signed with it"
    with worker(mongo_url, tmp_path / "host", HYPERFARM_CACHE=str(tmp_path / "cache")) as host:
        told = eventually(
            lambda: [one for w in farm.store.live_workers() for one in w["refused"]], "a refusal"
        )
        assert f"chmod 600 {file}" in told[0]["reason"]
        host.terminate()
        printed = host.communicate(timeout=60)[0]
    assert farm.ran() == set()
    assert secret not in done.stdout + done.stderr + printed + told[0]["reason"]


MALFORMED = {
    "signature": {"signature": 5},
    "revision": {"revision": ["x"]},
    "python": {"python": None},
    "sha256": {"sha256": None},
    "packages": {"packages": [1]},
}


def test_documents_that_make_no_sense_do_not_end_a_worker(farm: Farm, mongo_url: str, tmp_path: Path) -> None:
    for key, changes in MALFORMED.items():
        entry = farm.begin(key)
        farm.queue(key, entry["revision"])
        farm.set_bundles(key, [{name: v for name, v in (entry | changes).items() if v is not None}])
    odd = farm.begin("odd")["revision"]
    for fields in ({"exp_key": {"a": 1}}, {"exp_key": 5}, {"bundle": ["x"]}, {"limits": 5}, {"attempt": "x"}):
        farm.queue("odd", odd, **fields)

    def refused() -> set[str]:
        return {one["exp_key"] for host in farm.store.live_workers() for one in host["refused"]}

    with worker(mongo_url, tmp_path / "host", HYPERFARM_CACHE=str(tmp_path / "cache")):
        eventually(lambda: refused() >= MALFORMED.keys(), "all refusals")
        farm.queue("honest", farm.begin("honest")["revision"])
        eventually(lambda: "honest" in farm.ran(), "signed code runs")


def test_a_checkpoint_that_no_worker_made_is_not_handed_out(
    farm: Farm, mongo_url: str, tmp_path: Path
) -> None:
    def objective(x: float) -> float:
        import pickle

        from hyperfarm import trial

        saved = trial.resume()
        return 7.0 if saved is None else pickle.loads(saved.read_bytes())

    bundle = pack(objective, SPACE)
    request = Request(exp_key="k", bundle=bundle, space=SPACE, algo="rand", max_evals=9)
    open_experiment(farm.store, farm.blobs, request)
    made = farm.put(pickle.dumps(Bomb(farm.folder / "checkpoint")), "k")
    kept = {**made, "name": "checkpoint", "attempt": 1, "at": farm.store.now(), "signature": "0" * 64}
    tid = farm.queue("k", bundle.revision, checkpoint=kept)
    with worker(mongo_url, tmp_path / "host", HYPERFARM_CACHE=str(tmp_path / "cache")) as host:
        eventually(lambda: farm.store.job("k", tid)["state"] in (2, 3), "the trial ends")
        host.terminate()
        assert "begins anew: its checkpoint was not made by" in host.communicate(timeout=60)[0]
    assert farm.store.job("k", tid)["result"]["loss"] == 7.0
    assert farm.ran() == set()


def test_replace_code_signs_anew_what_workers_refuse(farm: Farm, mongo_url: str, tmp_path: Path) -> None:
    """After the secret has changed, or somebody has exchanged the bundle."""
    altered(farm, "k", farm.begin("k"))
    farm.begin("k", replace_code=True)
    farm.begin("k", replace_code=True)
    assert len(farm.entries("k")) == 2, "once is enough"
    farm.queue("k", farm.entries("k")[-1]["revision"])
    with worker(mongo_url, tmp_path / "host", HYPERFARM_CACHE=str(tmp_path / "cache")):
        eventually(lambda: "k" in farm.ran(), "it runs")

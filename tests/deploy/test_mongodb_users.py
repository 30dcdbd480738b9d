"""The farm's users on a real mongod with authentication: what each may do, what not, and that it is enough.

The role and the users are made by the very statements that docker-compose.yml and docs/mongodb.md use
(deploy/mongodb/users.json).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure

from hyperfarm.blobs import Blobs
from hyperfarm.indexes import INDEXES
from hyperfarm.jobs import JobState
from hyperfarm.store import Store
from tests.deploy.database import mongod_at
from tests.making import OK, claim, queue
from tests.support import descendants, eventually, gone, line_with

PROJECT = Path(__file__).parents[2]
ADDRESS = "127.0.0.2"
UNAUTHORIZED = 13
PASSWORDS = {"admin": "adm1n", "controller": "c\"o'n:t/r@l %", "worker": "w$rk${er}"}
LEASE_S = 3.0
OBJECTIVE = """
import json
import os
import time
from pathlib import Path

from hyperfarm import hp, trial

space = {"x": hp.uniform("x", -5, 5)}


class Model:
    def save(self, path):
        path.write_bytes(os.urandom(3 << 20))


def objective(point):
    state = json.loads(trial.resume().read_bytes()) if trial.resume() else {"step": 0}
    while state["step"] < 3:
        state["step"] += 1
        trial.report(loss=point["x"] ** 2, step=state["step"])
        trial.checkpoint(json.dumps(state).encode())
        if trial.id == 0 and state["step"] == 2 and trial.attempt == 1:
            Path("HANGS").touch()
            time.sleep(600)
    if trial.id == 1:
        raise ValueError("this one fails")
    print("trained", flush=True)
    trial.save_model(Model(), "model.bin")
    trial.save("notes.txt", b"a file")
    return {"loss": point["x"] ** 2, "status": "ok", "big": os.urandom(2 << 20)}
"""


@dataclass(frozen=True)
class Server:
    """A mongod, what URLs of it need besides users, and a client of its admin."""

    port: int
    options: str
    admin: MongoClient[dict[str, Any]]

    def client(self, user: str, database: str) -> MongoClient[dict[str, Any]]:
        url = f"mongodb://127.0.0.1:{self.port}/{database}?replicaSet=hyperfarm{self.options}"
        return MongoClient(url, username=user, password=PASSWORDS[user], tz_aware=True)

    def url(self, user: str, database: str) -> str:
        """An address with the user alone; the password comes from the environment."""
        return f"mongodb://{user}@127.0.0.1:{self.port}/{database}?replicaSet=hyperfarm{self.options}"


@contextlib.contextmanager
def replica_set_of_one(folder: Path, *options: str, tls: str = "") -> Iterator[Server]:
    """A mongod with --auth and a key file, made as docker-compose.yml makes it. `tls`: options of its URLs."""
    folder.mkdir()
    key = folder / "keyfile"
    key.write_text("a" * 64)
    key.chmod(0o400)
    with contextlib.ExitStack() as stack:
        started = ["--auth", "--keyFile", str(key), "--replSet", "hyperfarm", *options]
        port = stack.enter_context(mongod_at(ADDRESS, folder / "data", *started, probe=tls))
        direct = f"mongodb://127.0.0.1:{port}/?directConnection=true{tls}"
        with MongoClient(direct) as first:
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            first.admin.command("replSetInitiate", {"_id": "hyperfarm", "members": members})
            eventually(lambda: first.admin.command("hello")["isWritablePrimary"], "a primary")
            first.admin.command("createUser", "admin", pwd=PASSWORDS["admin"], roles=["root"])
        admin = stack.enter_context(MongoClient(direct, username="admin", password=PASSWORDS["admin"]))
        yield Server(port, tls, admin)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with replica_set_of_one(tmp_path_factory.mktemp("auth") / "mongod") as made:
        yield made


@dataclass(frozen=True)
class Farm:
    """A database with the farm's users, empty."""

    server: Server
    name: str
    clients: contextlib.ExitStack

    def as_(self, user: str) -> Database[dict[str, Any]]:
        return self.clients.enter_context(self.server.client(user, self.name))[self.name]

    def env(self, user: str) -> dict[str, str]:
        """What a person exports to work as this user."""
        url = self.server.url(user, self.name)
        return {"HYPERFARM_MONGO": url, "HYPERFARM_MONGO_PASSWORD": PASSWORDS[user]}

    @contextlib.contextmanager
    def store(self, user: str) -> Iterator[Store]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HYPERFARM_MONGO_PASSWORD", PASSWORDS[user])
            opened = Store.open(self.server.url(user, self.name))
        yield opened
        opened.close()


@contextlib.contextmanager
def farm_at(server: Server) -> Iterator[Farm]:
    with contextlib.ExitStack() as clients:
        made = Farm(server, f"farm_{uuid.uuid4().hex[:8]}", clients)
        for statement in statements(made.name):
            server.admin[made.name].command(statement)
        yield made
        server.admin.drop_database(made.name)


@pytest.fixture
def farm(server: Server) -> Iterator[Farm]:
    with farm_at(server) as made:
        yield made


def statements(database: str) -> list[dict[str, Any]]:
    """users.json with its placeholders filled in, as users.js does it."""
    values = {"FARM_DATABASE": database, "CONTROLLER_PASSWORD": PASSWORDS["controller"]}
    values["WORKER_PASSWORD"] = PASSWORDS["worker"]

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            found = re.fullmatch(r"\$\{(\w+)\}", value)
            return values[found[1]] if found else value
        if isinstance(value, list):
            return [filled(one) for one in value]
        return {key: filled(one) for key, one in value.items()} if isinstance(value, dict) else value

    read: list[dict[str, Any]] = filled(json.loads((PROJECT / "deploy/mongodb/users.json").read_text()))
    return read


def command_line(
    *words: str, folder: Path, check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "hyperfarm.cli", *words],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=150,
        stdin=subprocess.DEVNULL,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def running(*words: str, folder: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A command line that is killed, with all that it started, when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hyperfarm.cli", *words],
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)
        process.stdout.close()


def kill(process: subprocess.Popen[str]) -> None:
    family = [process.pid, *descendants(process.pid)]
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.wait()
    eventually(lambda: gone(family), "all processes are gone")


def refused(call: Callable[..., object], *arguments: Any, **named: Any) -> bool:
    """True when the server does not let this user do it; other errors come through."""
    try:
        call(*arguments, **named)
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return True
    return False


# ---- rights and refusals -------------------------------------------------------------------------------


def prepared(farm: Farm) -> None:
    """What a controller makes, and another farm beside it."""
    with farm.store("controller") as store:
        store.create_experiment({"_id": "exp"})
        queue(store, 2)
    farm.server.admin["another"]["jobs"].insert_one({"tid": 0})


WORKER_MUST_NOT: dict[str, Callable[[Database[dict[str, Any]]], object]] = {
    "drop the database": lambda farm: farm.client.drop_database(farm.name),
    "delete a job": lambda farm: farm.jobs.delete_one({}),
    "delete jobs": lambda farm: farm.jobs.delete_many({}),
    "delete a job by findAndModify": lambda farm: farm.jobs.find_one_and_delete({}),
    "add a job": lambda farm: farm.jobs.insert_one({"tid": 99}),
    "add a job by upsert": lambda farm: farm.jobs.update_one({"tid": 99}, {"$set": {"a": 1}}, upsert=True),
    "delete an experiment": lambda farm: farm.experiments.delete_one({"_id": "exp"}),
    "change an experiment": lambda farm: farm.experiments.update_one({}, {"$set": {"bundles": []}}),
    "add an experiment": lambda farm: farm.experiments.insert_one({"_id": "mine"}),
    "delete reports": lambda farm: farm.reports.delete_many({}),
    "read another's reports": lambda farm: farm.reports.find_one(),
    "take trial ids": lambda farm: farm.job_ids.update_one({"a": 0}, {"$inc": {"last_id": 1}}),
    "change code": lambda farm: farm["farm.files"].update_one({}, {"$set": {"length": 0}}),
    "change code, piecewise": lambda farm: farm["farm.chunks"].update_one({}, {"$set": {"data": b""}}),
    "let jobs vanish with time": lambda farm: farm.jobs.create_index("book_time", expireAfterSeconds=1),
    "index experiments": lambda farm: farm.experiments.create_index("created"),
    "overwrite by $out": lambda farm: list(farm.jobs.aggregate([{"$out": "experiments"}])),
    "overwrite by $merge": lambda farm: list(farm.jobs.aggregate([{"$merge": "experiments"}])),
    "rename": lambda farm: farm.jobs.rename("old"),
    "make a collection": lambda farm: farm.create_collection("mine"),
    "cap a collection": lambda farm: farm.command("convertToCapped", "jobs", size=4096),
    "change a collection": lambda farm: farm.command("collMod", "jobs", validator={"a": 1}),
    "watch the whole server": lambda farm: farm.client.watch().close(),
    "profile": lambda farm: farm.command("profile", 2),
}
NOBODY_MAY: dict[str, Callable[[Database[dict[str, Any]]], object]] = {
    "read another farm": lambda farm: farm.client["another"].jobs.find_one(),
    "write to another farm": lambda farm: farm.client["another"].jobs.insert_one({}),
    "drop another farm": lambda farm: farm.client.drop_database("another"),
    "read the users": lambda farm: farm.client["admin"]["system.users"].find_one(),
    "read the oplog": lambda farm: farm.client["local"]["oplog.rs"].find_one(),
    "make a user": lambda farm: farm.command("createUser", "mine", pwd="a", roles=[]),
    "make a user of admin": lambda farm: farm.client.admin.command(
        "createUser", "a", pwd="a", roles=["root"]
    ),
    "make a role": lambda farm: farm.command("createRole", "mine", privileges=[], roles=[]),
    "take a right": lambda farm: farm.command("grantRolesToUser", "worker", roles=["readWrite"]),
    "widen its role": lambda farm: farm.command("updateRole", "hyperfarmWorker", privileges=[]),
    "change a password": lambda farm: farm.command("updateUser", "controller", pwd="mine"),
    "drop a user": lambda farm: farm.command("dropUser", "controller"),
    "change the replica set": lambda farm: farm.client.admin.command("replSetStepDown", 1),
    "stop the server": lambda farm: farm.client.admin.command("shutdown"),
    "change the server": lambda farm: farm.client.admin.command("setParameter", 1, logLevel=0),
    "look at others' statements": lambda farm: farm.client.admin.aggregate(
        [{"$currentOp": {"allUsers": True}}]
    ),
}


def test_the_worker_is_refused_what_it_does_not_need(farm: Farm) -> None:
    prepared(farm)
    before = {name: farm.as_("controller")[name].count_documents({}) for name in ("jobs", "experiments")}
    database = farm.as_("worker")
    must_not = {**WORKER_MUST_NOT, **NOBODY_MAY}
    assert [what for what, call in must_not.items() if not refused(call, database)] == []
    for name in [*INDEXES, "experiments", "workers", "news", "farm.chunks", "fs.chunks"]:
        assert refused(database.command, "drop", name), f"drop {name}"
        assert refused(database.command, "dropIndexes", name, index="*"), f"dropIndexes {name}"
    after = {name: farm.as_("controller")[name].count_documents({}) for name in ("jobs", "experiments")}
    assert after == before == {"jobs": 2, "experiments": 1}
    assert database.client.list_database_names() == [farm.name], "it sees no other database"


def test_the_controller_rules_its_farm_and_nothing_else(farm: Farm) -> None:
    prepared(farm)
    database = farm.as_("controller")
    assert [what for what, call in NOBODY_MAY.items() if not refused(call, database)] == []
    database.jobs.delete_many({})
    database.experiments.drop()
    assert database.client.list_database_names() == [farm.name]


def test_the_worker_may_store_all_that_a_trial_makes(farm: Farm) -> None:
    """Also hyperopt's attachments, whose bucket nobody has used before: its indexes are made on the first use."""
    prepared(farm)
    Blobs(farm.as_("controller")).put(b"code", "bundle")
    with farm.store("worker") as store:
        blobs = Blobs(store.database)
        first, second = claim(store), claim(store)
        name, blob = blobs.put_attachment(first, "picture", b"1234")
        assert blobs.read_attachment({"_attachments": [[name, blob]]}, name) == b"1234"
        for name in ("farm.files", "farm.chunks"):  # The experiment is removed while its trial runs.
            farm.as_("controller")[name].delete_many({})
        old = blobs.put_for(first, b"old", "checkpoint", "checkpoint")
        store.keep_checkpoint(first, old)
        blobs.delete([old["blob"]], [blob])
        store.add_reports(first, [{"loss": 1.0}])
        assert store.renew([first.lease.token, second.lease.token], 60.0) == set()
        store.finish(first, JobState.DONE, {**OK, "artifacts": [{**old, "kind": "model"}]})
        assert store.prune_models("exp", 0) == [old["blob"]]
        assert store.release(second, "enough")
        store.heartbeat("w1", {"host": "here"})
        store.unregister("w1")
    assert "files_id_1_n_1" in farm.as_("controller")["fs.chunks"].index_information()


@pytest.mark.parametrize("user", ["controller", "worker"])
def test_a_wrong_password_is_refused_in_one_sentence(farm: Farm, user: str, tmp_path: Path) -> None:
    env = {**farm.env(user), "HYPERFARM_MONGO_PASSWORD": "wrong"}
    done = command_line("ls", folder=tmp_path, check=False, **env)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "refuses this user: check user, password and authSource" in done.stderr
    assert "wrong" not in done.stderr


def test_without_a_user_nothing_is_told(farm: Farm, tmp_path: Path) -> None:
    url = f"mongodb://127.0.0.1:{farm.server.port}/{farm.name}?replicaSet=hyperfarm"
    done = command_line("ls", "--mongo", url, folder=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "refuses this user" in done.stderr


# ---- a whole search ------------------------------------------------------------------------------------


def test_a_worker_before_any_controller_says_what_to_do(farm: Farm, tmp_path: Path) -> None:
    done = command_line("worker", folder=tmp_path, check=False, **farm.env("worker"))
    assert done.returncode == 2
    assert f"the database {farm.name} has no farm yet" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    command_line("ls", folder=tmp_path, **farm.env("controller"))
    with running("worker", folder=tmp_path, **farm.env("worker")) as worker:
        line_with(worker, "1 slots")
        eventually(lambda: farm.as_("controller").workers.count_documents({}) == 1, "it is registered")


def test_a_search(farm: Farm, tmp_path: Path) -> None:
    """As the users that the compose file makes: a worker is killed, and another one takes its trial back."""
    (tmp_path / "optimise.py").write_text(OBJECTIVE.replace("HANGS", str(tmp_path / "hangs")))
    search = ("run", "optimise.py", "--max-evals", "6", "--keep-models", "1", "--algo", "rand")
    worker = ("worker", "--slots", "2", "--lease", str(LEASE_S), "--trial-timeout", "120")
    controller, env = farm.env("controller"), farm.env("worker")
    command_line("ls", folder=tmp_path, **controller)
    jobs = farm.as_("controller").jobs
    with (
        running(*worker, folder=tmp_path, **env) as first,
        running(*search, folder=tmp_path, **controller) as run,
    ):
        eventually((tmp_path / "hangs").exists, "trial 0 hangs")
        eventually(lambda: jobs.find_one({"tid": 0, "checkpoint": {"$exists": True}}), "its checkpoint")
        kill(run)
        kill(first)
    # As the worker of docker-compose.yml connects.
    env["HYPERFARM_MONGO"] = env["HYPERFARM_MONGO"].replace("replicaSet=hyperfarm", "directConnection=true")
    with running(*worker, folder=tmp_path, **env) as second:
        line_with(second, "trial 0 of optimise: its lease expired; requeue")
        command_line(*search, folder=tmp_path, **controller)
        second.send_signal(signal.SIGTERM)
        line_with(second, "nothing is left running")
        assert second.wait(30) == 0
    found = {job["tid"]: job for job in jobs.find()}
    states = {tid: job["state"] for tid, job in found.items()}
    assert len(found) == 6
    assert states == {tid: int(JobState.ERROR if tid == 1 else JobState.DONE) for tid in found}
    assert (found[0]["attempt"], found[0]["history"][0]["event"]) == (2, "requeue")
    assert found[1]["error"] == ["ValueError", "this one fails"]
    steps = [one["step"] for one in farm.as_("controller").reports.find({"tid": 0})]
    assert steps == [1, 2, 3], "the second attempt resumed from the first one's checkpoint"
    assert sum(job.get("models_removed", False) for job in found.values()) == 4
    command_line("pull", "optimise", "-o", "model.bin", folder=tmp_path, **controller)
    assert (tmp_path / "model.bin").stat().st_size == 3 << 20
    assert command_line("logs", "optimise", "0", folder=tmp_path, **controller).stdout.strip() == "trained"
    command_line("gc", "--delete", folder=tmp_path, **controller)
    command_line("rm", "optimise", "--yes", folder=tmp_path, **controller)
    assert jobs.count_documents({}) == 0


def test_doctor_and_top_work_as_either_user(farm: Farm, tmp_path: Path) -> None:
    """What looks only also works as the users of the farm: what they may not ask is left out."""
    prepared(farm)
    for user in ("controller", "worker"):
        assert "Traceback" not in command_line("top", "--once", folder=tmp_path, **farm.env(user)).stderr
        done = command_line("doctor", folder=tmp_path, check=False, **farm.env(user))
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr


# ---- TLS -----------------------------------------------------------------------------------------------


def docs_block(heading: str) -> str:
    """The first shell block under a heading of docs/mongodb.md."""
    text = (PROJECT / "docs" / "mongodb.md").read_text()
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]


@dataclass(frozen=True)
class Certificates:
    folder: Path
    subject: str

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An own CA, the server's certificate and a worker's, by the very commands of docs/mongodb.md."""
    if shutil.which("openssl") is None:
        assert not os.environ.get("CI"), "needs openssl"
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    script = docs_block("TLS with a CA of your own").replace(
        "DNS:db.example.org", "IP:127.0.0.1,IP:127.0.0.2"
    )
    script += docs_block("Certificates instead of passwords")
    subprocess.run(["sh", "-eu"], input=script, cwd=folder, check=True, capture_output=True, text=True)
    asked = ["openssl", "x509", "-in", "worker.pem", "-noout", "-subject", "-nameopt", "RFC2253"]
    subject = subprocess.run(asked, cwd=folder, check=True, capture_output=True, text=True).stdout
    return Certificates(folder, subject.strip().removeprefix("subject="))


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--tlsMode", "requireTLS", "--tlsCAFile", str(certificates["ca.crt"])]
    options += ["--tlsCertificateKeyFile", str(certificates["server.pem"])]
    options += ["--tlsAllowConnectionsWithoutCertificates"]
    tls = f"&tls=true&tlsCAFile={certificates['ca.crt']}"
    with replica_set_of_one(tmp_path_factory.mktemp("tls") / "mongod", *options, tls=tls) as made:
        yield made


@pytest.fixture
def tls_farm(tls_server: Server) -> Iterator[Farm]:
    with farm_at(tls_server) as made:
        yield made


def test_tls_with_the_ca(tls_farm: Farm, tmp_path: Path) -> None:
    env = tls_farm.env("controller")
    done = command_line("ls", "--mongo", env.pop("HYPERFARM_MONGO"), folder=tmp_path, **env)
    assert "There are no experiments in this database yet" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("&tls=true", "name its CA in the address, with tlsCAFile"),
        ("", "if it wants TLS, add tls=true"),
        ("&tls=true&tlsCAFile=/nowhere/ca.crt", "cannot be read"),
    ],
)
def test_tls_without_the_ca_is_told_in_one_sentence(
    tls_farm: Farm, tmp_path: Path, options: str, said: str
) -> None:
    plain = tls_farm.env("controller")
    plain["HYPERFARM_MONGO"] = plain["HYPERFARM_MONGO"].partition("&")[0] + options
    done = command_line("ls", folder=tmp_path, check=False, **plain)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert PASSWORDS["controller"] not in done.stderr


def test_a_certificate_instead_of_a_password(
    tls_farm: Farm, certificates: Certificates, tmp_path: Path
) -> None:
    """A worker whose certificate is its user: MONGODB-X509."""
    roles = [{"role": "hyperfarmWorker", "db": tls_farm.name}]
    external = tls_farm.server.admin["$external"]
    external.command("createUser", certificates.subject, roles=roles)
    command_line("ls", folder=tmp_path, **tls_farm.env("controller"))
    url = f"mongodb://127.0.0.1:{tls_farm.server.port}/{tls_farm.name}?replicaSet=hyperfarm&tls=true"
    url += f"&tlsCAFile={certificates['ca.crt']}&authMechanism=MONGODB-X509&authSource=$external"
    certificate = f"&tlsCertificateKeyFile={certificates['worker.pem']}"
    try:
        with running("worker", "--mongo", url + certificate, folder=tmp_path) as worker:
            line_with(worker, "1 slots")
            eventually(
                lambda: tls_farm.as_("controller").workers.count_documents({}) == 1, "it is registered"
            )
        done = command_line("ls", "--mongo", url, folder=tmp_path, check=False)
        assert done.returncode == 2
        assert "refuses this user" in done.stderr
    finally:
        external.command("dropUser", certificates.subject)

"""One host in depth: what lies on it, who can read it, and how its worker is changed and stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bson import json_util
from pymongo import MongoClient

from tests.deploy.database import mongod_at
from tests.deploy.net import Net
from tests.deploy.user import User
from tests.support import eventually

PASSWORD = "s3cret-of-the-database"
SLOW = """\
import time
from hyperfarm import hp, trial

space = {"x": hp.uniform("x", -5, 5)}


def objective(point):
    before = trial.resume()
    steps = int(before.read_text()) if before else 0
    while steps < 400:
        time.sleep(0.05)
        steps += 1
        trial.checkpoint(str(steps).encode())
    return {"loss": point["x"] ** 2, "status": "ok", "attempt": trial.attempt, "resumed": before is not None}
"""


@pytest.fixture
def database(net: Net) -> Iterator[int]:
    """A mongod that asks for a password."""
    with mongod_at(net.gateway, net.folder / "mongod", "--auth") as port:
        with MongoClient("127.0.0.1", port) as client:
            client.admin.command("createUser", "farm", pwd=PASSWORD, roles=["root"])
        yield port


@pytest.fixture
def user(net: Net, database: int, wheels: Path) -> User:
    net.add("one")
    person = User(net, database, wheels)
    person.url = f"mongodb://farm:{PASSWORD}@{net.gateway}:{database}/farm?authSource=admin"
    (person.home / "password").write_text(PASSWORD)
    person.env["HYPERFARM_MONGO"] = person.url.replace(f":{PASSWORD}", "")
    person.env["HYPERFARM_MONGO_PASSWORD_FILE"] = str(person.home / "password")
    return person


def everything(url: str) -> str:
    """All documents of the database, as text."""
    with MongoClient(url) as client:
        farm = client.get_default_database()
        return json.dumps(
            [list(farm[name].find()) for name in farm.list_collection_names()], default=json_util.default
        )


@pytest.mark.timeout(300)
def test_secrets_stay_secret_and_a_worker_is_changed_restarted_and_stopped(net: Net, user: User) -> None:
    (host,) = net.hosts
    line = f"{host.user}@{host.address}"
    user.write(f"{line} slots=1 devices=0,1")
    said = user.up()
    folder = host.home / ".hyperfarm"
    secret = (folder / "config" / "secret").read_text().strip()
    assert PASSWORD in (folder / "config" / "mongo-url").read_text()
    for path in [folder, *folder.glob("config"), *folder.glob("logs"), *folder.glob("incoming")]:
        assert path.stat().st_mode & 0o077 == 0, path
    for path in folder.glob("config/*"):
        assert path.stat().st_mode & 0o777 == 0o600, path
    shown = [said, user.hyperfarm("hosts", "status"), user.hyperfarm("hosts", "logs"), everything(user.url)]
    shown += [(folder / "logs" / "worker.log").read_text(), (folder / "worker.json").read_text()]
    shown += [(host.folder / "sshd.log").read_text(), (net.folder / "mongod" / "mongod.log").read_text()]
    for pid in host.pids():
        shown += [Path(f"/proc/{pid}/{name}").read_bytes().decode() for name in ("cmdline", "environ")]
    for text in shown:
        assert PASSWORD not in text
        assert secret not in text
    assert "0,1" in said

    old_name = "HYPERFARM_CONFIG=.hyperfarm/config .hyperfarm/venv/bin/hyperopt-mongo-worker"
    told = user.hyperfarm("hosts", "exec", f"{old_name} --max-jobs=1 --reserve-timeout=0.1 2>&1", code=4)
    assert "no job came within 0.1 s" in told, "our program, at our database, under the old name"

    before = host.workers()
    user.up()
    assert host.workers() == before
    user.up("--", "--trial-timeout", "600")
    assert "--trial-timeout 600" in " ".join(host.workers())
    pids = host.pids()
    user.hyperfarm("hosts", "restart", "--wheelhouse", str(user.wheels), "--", "--trial-timeout", "600")
    assert set(host.pids()) != set(pids)
    assert len(host.workers()) == 1

    (user.home / "slow.py").write_text(SLOW)
    search = subprocess.Popen(
        [sys.executable, "-m", "hyperfarm.cli", "run", "slow.py", "--max-evals", "1", "--workers", "0"],
        cwd=user.home,
        env=user.env,
        stdout=subprocess.DEVNULL,
    )
    try:
        with MongoClient(user.url) as client:
            jobs = client.get_default_database()["jobs"]
            eventually(
                lambda: jobs.find_one({"checkpoint": {"$exists": True}, "state": 1}), "a checkpoint", 60
            )
            began = time.monotonic()
            assert "stopped" in user.hyperfarm("hosts", "down", "--now")
            assert time.monotonic() - began < 15
            assert not host.workers()
            job = jobs.find_one({})
            assert (job["state"], job["attempt"]) == (0, 0)
            assert client.get_default_database()["workers"].count_documents({}) == 0
            user.up()
            assert search.wait(90) == 0
            job = jobs.find_one({})
            assert (job["state"], job["result"]["resumed"], job["result"]["attempt"]) == (2, True, 1)
    finally:
        search.kill()
        search.wait()

    user.write(f'{line} workdir=other worker_command="echo $HYPERFARM_CONFIG; exec sleep 1000"')
    assert "1 of 1 hosts" in user.up()
    assert str(host.home / "other" / "config") in user.hyperfarm("hosts", "logs")
    assert "1 of 1 hosts" in user.hyperfarm("hosts", "status")
    user.hyperfarm("hosts", "down", "--purge")
    assert not (host.home / "other").exists()
    assert "sleep" not in " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in host.pids())
    (host.home / "mine").mkdir()
    (host.home / "mine" / "thesis.tex").touch()
    user.write(f"{line} workdir=mine")
    assert "is not ours" in user.up(code=4)
    assert "it is left alone" in user.hyperfarm("hosts", "down", "--purge", code=4)
    assert (host.home / "mine" / "thesis.tex").exists()

"""`hyperfarm hosts` as people use it: real SSH servers, a real mongod, real environments, a real search."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pymongo import MongoClient

from tests.deploy.database import mongod_at
from tests.deploy.net import Host, Net, run
from tests.deploy.user import User
from tests.support import eventually

PYTHONS = {
    path.resolve() for folder in ("/usr/bin", "/usr/local/bin") for path in Path(folder).glob("python3*")
}
"""Every Python that a host of these tests has."""
SCRIPT = """\
import time
from hyperfarm import hp

space = {"x": hp.uniform("x", -5, 5)}


def objective(point):
    time.sleep(0.3)
    return (point["x"] - 1) ** 2
"""


def instead_of_python(program: str | Path) -> str:
    """Shell commands after which a host has this program in the place of each of its Pythons."""
    return " && ".join(f"mount --bind {program} {python}" for python in sorted(PYTHONS))


def faketime() -> Path:
    """The library that makes a clock wrong."""
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.rglob("libfaketime.so*"))


def line(host: Host, *settings: str) -> str:
    return " ".join([f"{host.user}@{host.address}:{host.port}", *settings])


def row(table: str, host: Host) -> str:
    """The host's row of the table at the end."""
    return next(
        text for text in reversed(table.splitlines()) if text.startswith(f"{host.user}@{host.address}")
    )


@pytest.mark.timeout(420)
def test_hosts_come_up_search_and_go_down(net: Net, database: int, wheels: Path) -> None:
    hosts = [net.add(f"h{number}", port=22 if number else 2222) for number in range(5)]
    user = User(net, database, wheels)
    inner = hosts[4]
    user.write(
        "* slots=1 labels=cpu",
        line(hosts[0], "slots=2"),
        line(hosts[1]),
        line(hosts[2]),
        line(hosts[3]),
        line(inner, f"jump={hosts[0].user}@{hosts[0].address}:2222", "labels=inner"),
    )
    table = user.up()
    assert "5 of 5 hosts" in table
    assert all("started" in row(table, host) for host in hosts)
    assert row(table, hosts[0]).split()[2] == "2"

    again = user.up()
    assert all(row(again, host).split()[1] == "up" for host in hosts), again

    (user.home / "task.py").write_text(SCRIPT)
    search = subprocess.Popen(
        [sys.executable, "-m", "hyperfarm.cli", "run", "task.py", "--max-evals", "60", "--workers", "0"],
        cwd=user.home,
        env=user.env,
        stdout=subprocess.DEVNULL,
    )
    try:
        with MongoClient(user.url) as client:
            jobs = client.get_default_database()["jobs"]
            eventually(lambda: len(jobs.distinct("owner", {"state": 1})) == 5, "all five hosts work", 60)
            hosts[2].cut()
            hosts[3].stop()  # Only its sshd: the worker goes on.
            assert search.wait(200) == 0
            assert jobs.count_documents({"state": 2}) == 60
            done = {str(owner).rpartition(":")[0] for owner in jobs.distinct("owner", {"state": 2})}
            assert done >= {f"{one.user}@{one.address}:{one.port}" for one in hosts if one is not hosts[2]}
            assert not jobs.count_documents({"state": {"$in": [0, 1]}})
    finally:
        search.kill()
        search.wait()

    stopped = user.hyperfarm("hosts", "down", "--only", "cpu", code=3)
    assert "nothing listens on port 22" in row(stopped, hosts[3])
    assert "cannot be reached" in row(stopped, hosts[2])
    hosts[2].mend()
    hosts[3].start()
    purged = user.hyperfarm("hosts", "down", "--purge")
    assert "5 of 5 hosts" in purged
    for host in hosts:
        assert not host.workers()
        assert not list(host.home.iterdir())


@pytest.mark.timeout(300)
def test_every_trouble_is_one_row_and_the_others_go_on(net: Net, wheels: Path) -> None:
    second = f"{net.prefix}.2"
    run("ip", "address", "add", f"{second}/24", "dev", net.bridge)
    clock = shutil.copy(faketime(), net.folder / "libfaketime.so")
    old = net.folder / "old-python"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    good, full = net.add("good"), net.add("full", start=False)
    full.setup = f"mount -t tmpfs -o size=20m,mode=777 none {full.home}"
    full.start()
    trouble = {
        "its disk is full": full,
        "no Python 3.10 or newer is there: install one": net.add(
            "none", setup=instead_of_python("/bin/false")
        ),
        " is 3.9: install one": net.add("old", setup=instead_of_python(old)),
        "its clock is 3600 s ahead": net.add("late", settings=f"SetEnv LD_PRELOAD={clock} FAKETIME=+3600s"),
        "no MongoDB answers": net.add("lost", setup=f"ip route add blackhole {second}/32"),
        "it refuses to let": net.add("closed"),
        "nothing listens on port 22": net.add("dead", start=False),
        "ITS HOST KEY HAS CHANGED": net.add("changed"),
    }
    changed, closed = trouble["ITS HOST KEY HAS CHANGED"], trouble["it refuses to let"]
    (closed.folder / "authorized_keys").write_text("")
    with mongod_at(second, net.folder / "mongod") as port:
        user = User(net, port, wheels)
        user.env["HYPERFARM_MONGO"] = f"mongodb://{second}:{port}/farm"
        changed.stop()
        changed.new_key()
        changed.start()
        user.write(*(line(host) for host in [good, *trouble.values()]), "nobody@nowhere.invalid")
        table = user.up(code=3)
        assert "1 of 10 hosts" in table
        assert "started" in row(table, good)
        for reason, host in trouble.items():
            assert reason in row(table, host), table
        assert "is not known (DNS)" in table
        assert changed.user not in (changed.folder / "sshd.log").read_text()
        assert not any(path.suffix == ".part" for path in good.home.rglob("*"))
        user.write(line(closed), line(changed))
        user.hyperfarm("hosts", "status", code=4)


def test_fifty_hosts_at_once_and_a_dead_one(net: Net, database: int, wheels: Path) -> None:
    hosts = [net.add(f"h{number}") for number in range(50)]
    user = User(net, database, wheels)
    user.write(*(line(host) for host in hosts))
    began = time.monotonic()
    table = user.hyperfarm("hosts", "exec", "sleep 5; hostname")
    alone = time.monotonic() - began
    assert all(host.name in table for host in hosts)
    assert alone < 20
    hosts[7].cut()
    began = time.monotonic()
    told = user.hyperfarm("hosts", "exec", "sleep 5; hostname", code=3)
    assert f"==> {hosts[7].user}@{hosts[7].address}:22: failed" in told
    assert time.monotonic() - began < alone + 12

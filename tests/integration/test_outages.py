"""MongoDB is away, its answers get lost, its primary changes: everybody waits, and nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperfarm import embedded
from hyperfarm.store import Store
from tests.replica import three_members
from tests.support import TWO_PARAMETERS, eventually, started, worker

SHORT = ["--lease", "2"]
KINDS = pytest.mark.parametrize("replica_set", [True, False], ids=["replica set", "standalone"])


class Script:
    """An objective in a file, the journal that its processes write, and a gate at which they wait."""

    def __init__(self, folder: Path, name: str, body: str) -> None:
        self.path, self.journal, self.gate = folder / f"{name}.py", folder / "journal", folder / "gate"
        top = "import os, time\ndef note(*words):\n"
        top += f"    with open({str(self.journal)!r}, 'a') as out:\n"
        top += "        out.write(' '.join(map(str, words)) + '\\n')\n"
        top += "def wait_at_gate():\n"
        top += f"    while not os.path.exists({str(self.gate)!r}):\n        time.sleep(0.02)\n"
        self.path.write_text(TWO_PARAMETERS + top + body)

    def noted(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []


class Database:
    """A mongod that a test may kill, and start again with its data on its port."""

    def __init__(self, folder: Path, replica_set: bool) -> None:
        self._folder, self._replica_set = folder, replica_set
        self._context = embedded.throwaway(folder, replica_set=replica_set)
        self.server = self._context.__enter__()
        self.url = self.server.url

    def kill(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        self.close()

    def start(self) -> None:
        self._context = embedded.throwaway(self._folder, replica_set=self._replica_set, port=self.server.port)
        self.server = self._context.__enter__()

    def close(self) -> None:
        self._context.__exit__(None, None, None)


@pytest.fixture
def database(replica_set: bool, tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "db", replica_set)
    yield made
    made.close()


class Listener:
    """Reads what a process prints, for as long as it prints."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.text = ""
        self._thread = threading.Thread(target=self._read, args=(process.stdout,))
        self._thread.start()

    def _read(self, stream) -> None:
        for line in stream:
            self.text += line

    def rest(self) -> str:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.text


@contextlib.contextmanager
def heard(process: subprocess.Popen) -> Iterator[Listener]:
    """Listen to a process that ends within the block, or is killed at its end."""
    listener = Listener(process)
    try:
        yield listener
    finally:
        process.kill()
        listener.rest()


@KINDS
def test_all_wait_for_mongod_and_a_result_made_meanwhile_is_delivered(replica_set, database, tmp_path):
    body = "def objective(p):\n    note(trial.id, trial.attempt)\n    if trial.id == 0:\n        wait_at_gate()\n"
    script = Script(tmp_path, "away", body + "        note('has ended')\n    return 1\n")
    with (
        worker(database.url, tmp_path / "a", *SHORT) as busy,
        heard(busy) as from_busy,
        started("run", str(script.path), "--mongo", database.url, "--max-evals", "2") as controller,
        heard(controller) as from_controller,
    ):
        eventually(script.noted, "the first trial runs")
        with worker(database.url, tmp_path / "b", *SHORT, "--quiet") as idle, heard(idle) as from_idle:
            eventually(lambda: "1 1" in script.noted(), "the other worker has had a trial")
            database.kill()
            script.gate.touch()
            eventually(lambda: "has ended" in script.noted(), "a result is there")
            for what in (from_busy, from_idle, from_controller):
                eventually(lambda what=what: "waiting for MongoDB" in what.text, "it says what it waits for")
            database.start()
            assert controller.wait(100) == 0
            store = Store.open(database.url)
            jobs = store.find_jobs("away")
            store.close()
            assert [process.poll() for process in (busy, idle)] == [None, None]
            said = [what.text for what in (from_busy, from_idle, from_controller)]
    assert [(job["state"], job["attempt"]) for job in jobs] == [(2, 1)] * 2
    assert script.noted() == ["0 1", "1 1", "has ended"]
    assert not [text for text in said if "Traceback" in text], said


@pytest.mark.parametrize("replica_set", [True])
def test_patience_ends(replica_set, database, tmp_path):
    body = "def objective(p):\n    note(trial.id)\n    wait_at_gate()\n    return 1\n"
    script = Script(tmp_path, "patience", body)
    patience = ["--patience", "3"]
    run = ["run", str(script.path), "--mongo", database.url, "--max-evals", "9", *patience]
    with (
        worker(database.url, tmp_path / "busy", *patience) as busy,
        worker(database.url, tmp_path / "idle", *patience, "--exp-key", "nothing") as idle,
        started(*run) as controller,
        started(*run, "--exp-key", "own", "--workers", "1") as with_worker,
    ):
        eventually(lambda: len(script.noted()) == 2, "two trials run")
        database.kill()
        script.gate.touch()
        for process in (busy, idle, controller, with_worker):
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 2, output
            said = [line for line in output.splitlines() if line.startswith("hyperfarm:")]
            assert len(said) == 1, output
            assert "MongoDB" in said[0] or "MongoDB" in output
            assert "Traceback" not in output
    database.start()


class Swallower:
    """A TCP proxy before a mongod. An answer that it swallows was given: the statement has taken effect."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._lock = threading.Lock()
        self._wanted: dict[tuple[bytes, ...], int] = {}
        self.swallowed: Counter[tuple[bytes, ...]] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self, wanted: dict[tuple[bytes, ...], int]) -> None:
        """Lose the answers to as many statements that have all of these marks."""
        with self._lock:
            self._wanted = wanted
            self.swallowed.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass on one request and its answer after the other (no statement of a worker's asks for more)."""
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._upstream)) as server,
        ):
            while request := _message(client):
                server.sendall(request)
                answer = _message(server)
                if answer is None or self._is_swallowed(request):
                    return
                client.sendall(answer)
                # An exhaust answer (the driver's monitor) is followed by more of them.
                while _more_to_come(answer) and (answer := _message(server)) is not None:
                    client.sendall(answer)

    def _is_swallowed(self, request: bytes) -> bool:
        with self._lock:
            for marks, times in self._wanted.items():
                if all(mark in request for mark in marks) and self.swallowed[marks] < times:
                    self.swallowed[marks] += 1
                    return True
        return False

    def close(self) -> None:
        self._listener.close()


def _message(source: socket.socket) -> bytes | None:
    """One message of MongoDB's wire protocol: it begins with its length."""
    head = _exactly(source, 4)
    rest = head and _exactly(source, struct.unpack("<i", head)[0] - 4)
    return head + rest if head and rest else None


def _exactly(source: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = source.recv(min(1 << 16, count - len(data)))
        if not part:
            return None
        data += part
    return bytes(data)


def _more_to_come(answer: bytes) -> bool:
    op_msg, more_to_come = 2013, 2
    return struct.unpack_from("<i", answer, 12)[0] == op_msg and bool(
        struct.unpack_from("<i", answer, 16)[0] & more_to_come
    )


CLAIM = b"findAndModify\0", b"not_before"
LOOK_UP = b"find\0", b"lease.token"
FINISH = b"update\0", b"accepted"


@KINDS
def test_an_answer_that_is_lost_makes_nothing_happen_twice(replica_set, database, tmp_path):
    body = "def objective(p):\n    note(trial.id, trial.attempt)\n    wait_at_gate()\n    return 1\n"
    script = Script(tmp_path, "lost", body)
    proxy = Swallower(database.server.port)
    store = Store.open(database.url)
    proxied = f"mongodb://127.0.0.1:{proxy.port}/{store.database.name}?directConnection=true"
    # On a replica set the driver repeats a write and a read by itself, once.
    driver = 2 if replica_set else 1
    with (
        started("run", str(script.path), "--mongo", database.url, "--max-evals", "3") as controller,
        worker(proxied, tmp_path / "w") as host,
    ):
        eventually(store.live_workers, "the worker is there")
        proxy.swallow({CLAIM: 9, LOOK_UP: 2})
        eventually(script.noted, "a trial runs")
        assert proxy.swallowed == {CLAIM: driver, LOOK_UP: 2}, (
            "whether the claim was made, it asks, until it knows"
        )
        running = [job for job in store.find_jobs("lost") if job["state"] == 1]
        assert [job["lease"]["worker"] for job in running] == [doc["_id"] for doc in store.live_workers()]
        proxy.swallow({FINISH: 3})
        script.gate.touch()
        assert controller.wait(100) == 0, controller.communicate()
        assert proxy.swallowed == {FINISH: 3}
        assert host.poll() is None
    jobs = store.find_jobs("lost")
    store.close()
    proxy.close()
    assert [(job["state"], job["attempt"]) for job in jobs] == [(2, 1)] * 3
    assert sorted(script.noted()) == ["0 1", "1 1", "2 1"]
    # One claim and one finish: each write that a reader can see counts one.
    assert [job["version"] for job in jobs] == [2] * 3


def test_elections_while_claims_and_finishes_are_under_way(tmp_path):
    script = Script(
        tmp_path, "elections", "def objective(p):\n    note(trial.id)\n    time.sleep(0.05)\n    return 1\n"
    )
    count = 120
    with three_members(tmp_path / "members") as members:
        url = members.url("farm")
        run = ["run", str(script.path), "--mongo", url, "--max-evals", str(count), "--algo", "rand"]
        with (
            worker(url, tmp_path / "a", "--slots", "2") as one,
            worker(url, tmp_path / "b", "--slots", "2") as two,
            heard(one),
            heard(two),
            started(*run) as controller,
            heard(controller) as from_controller,
        ):
            for done, disturb in (
                (20, members.step_down),
                (45, members.step_down),
                (70, members.kill_primary),
            ):
                eventually(lambda done=done: len(script.noted()) >= done, f"{done} trials", 100)
                disturb()
            assert controller.wait(100) == 0, from_controller.text
            assert [one.poll(), two.poll()] == [None, None]
            store = Store.open(url)
            jobs = store.find_jobs("elections")
            store.close()
    assert [(job["state"], job["attempt"]) for job in jobs] == [(2, 1)] * count
    assert sorted(job["slot"] for job in jobs) == list(range(count))
    assert sorted(map(int, script.noted())) == sorted(job["tid"] for job in jobs), "each ran once"


@pytest.mark.parametrize("replica_set", [False], ids=["standalone"])
def test_a_search_on_a_standalone_server_survives_a_worker_and_a_mongod(replica_set, database, tmp_path):
    body = (
        "def objective(p):\n    note(trial.id, trial.attempt)\n    if trial.attempt == 1 and trial.id == 0:\n"
    )
    script = Script(tmp_path, "alone", body + "        time.sleep(600)\n    time.sleep(0.1)\n    return 1\n")
    run = ["run", str(script.path), "--mongo", database.url, "--max-evals", "40", "--algo", "rand"]
    with started(*run) as controller, heard(controller) as from_controller:
        with worker(database.url, tmp_path / "a", *SHORT) as first:
            eventually(script.noted, "a trial runs")
            first.send_signal(signal.SIGKILL)
            first.wait()
        with worker(database.url, tmp_path / "b", "--lease", "60") as second, heard(second):
            eventually(lambda: "0 2" in script.noted(), "it runs elsewhere")
            database.kill()
            database.start()
            assert controller.wait(100) == 0, from_controller.text
    store = Store.open(database.url)
    jobs = store.find_jobs("alone")
    store.close()
    assert [(job["state"], job["attempt"]) for job in jobs] == [(2, 2)] + [(2, 1)] * 39, [
        job["history"] for job in jobs if "history" in job
    ]

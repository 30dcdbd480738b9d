"""The venv of hyperopt 0.2.7 with pymongo 3.13, the last pair that works together."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from hyperfarm import settings

VERSION = "0.2.7"
REQUIREMENTS = ["hyperopt==0.2.7", "pymongo==3.13.0", "setuptools<81", "networkx<3", "numpy<2"]


def python() -> Path:
    """Return the venv's Python; the venv is made on first use. Raises CalledProcessError when pip fails."""
    folder = settings.cache_dir() / "benchmarks" / f"hyperopt-{VERSION}-py3.{sys.version_info.minor}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    done, found = folder / "made", folder / "bin" / "python"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            print(f"making a venv with hyperopt {VERSION} in {folder} ...", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            pip = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *REQUIREMENTS], check=True, stdout=sys.stderr)
            done.touch()
    return found

"""A folder with every wheel that hosts without an index need: what hyperfarm and the user's code need, and pip."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from hyperfarm.deploy import wheel
from hyperfarm.errors import UsageError

TOLD = 600


def build(folder: Path, requirements: Path | None, python: str | None, platform: str | None) -> list[Path]:
    """Download the wheels with pip, and return all that the folder holds.

    `python` ("3.12") and `platform` ("manylinux2014_x86_64") are those of the hosts; None: as here. Raises
    UsageError with what pip says when a wheel is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, content = wheel.build()
    with tempfile.TemporaryDirectory(prefix="hyperfarm-wheel-") as place:
        own = Path(place) / name
        own.write_bytes(content)
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ]
        words += ["--only-binary=:all:", "--dest", str(folder)]
        words += ["--python-version", python] if python else []
        words += ["--platform", platform] if platform else []
        words += ["-r", str(requirements)] if requirements else []
        done = subprocess.run([*words, str(own), "pip"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise UsageError(f"pip cannot fetch the wheels: {said[-TOLD:]}")
    (folder / name).unlink(missing_ok=True)  # `up` brings the one that runs then.
    return sorted(folder.glob("*.whl"))

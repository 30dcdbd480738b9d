"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from hyperfarm.errors import UsageError


def check_writable(path: Path) -> None:
    """Raise UsageError when a file cannot lie at `path`, before anything is fetched or drawn."""
    try:
        is_folder, in_folder = path.is_dir(), path.absolute().parent.is_dir()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    if is_folder:
        raise UsageError(f"{path} is a folder; name a file")
    if not in_folder:
        raise UsageError(f"cannot write {path}: there is no folder {path.absolute().parent}")


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`; a file that is there is replaced in one step. Raises UsageError."""
    check_writable(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def file_name(text: str) -> str:
    """Return `text` in a form that is one plain file name on every system."""
    return re.sub(r"[^\w.+=-]+", "_", text).strip("._")[:100] or "experiment"

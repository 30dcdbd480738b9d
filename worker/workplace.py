"""The folder in which an objective runs inside the worker's own process.

A process has one current folder, so objectives in several threads share it: it is the one that was entered last, and
the first one comes back when the last of them has left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class _Places:
    """Who is where in this process."""

    home: str = ""
    inside: int = 0
    users: dict[str, int] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)


_PLACES = _Places()
_LOCK = threading.Lock()


@contextlib.contextmanager
def workplace(folder: str, *, erase: bool = False) -> Iterator[str]:
    """Be in `folder` (relative to where the process is when no objective runs), which is made if need be.

    With `erase` it is removed afterwards if it was made here, and nobody is in it any more.
    """
    with _LOCK:
        if not _PLACES.inside:
            _PLACES.home = os.getcwd()
        path = os.path.abspath(os.path.join(_PLACES.home, os.path.expanduser(folder)))
        if not os.path.exists(path):
            os.makedirs(path)
            _PLACES.made.add(path)
        os.chdir(path)
        _PLACES.inside += 1
        _PLACES.users[path] = _PLACES.users.get(path, 0) + 1
    try:
        yield path
    finally:
        with _LOCK:
            _PLACES.inside -= 1
            _PLACES.users[path] -= 1
            if not _PLACES.inside:
                os.chdir(_PLACES.home)
            if not _PLACES.users[path]:
                del _PLACES.users[path]
                if erase and path in _PLACES.made:
                    shutil.rmtree(path, ignore_errors=True)
                _PLACES.made.discard(path)

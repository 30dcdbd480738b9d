"""A host's small disk for temporary files, which the nemesis can fill.

Where a file system can be mounted it is a tmpfs of its own, full to the last byte or the last inode. Where
that is not allowed, the files that the host's processes write are limited to FILE_LIMIT bytes (setrlimit),
which needs no privilege: less like a full disk, but every write of a model or checkpoint fails.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

import psutil

SIZE = 24 << 20
INODES = 400
FILE_LIMIT = 9000
"""Below the smallest model, above what one execution of the objective writes into its journal."""
BALLAST = "ballast"


class Disk:
    """The folder `path`; a context manager that unmounts it. `may_mount` False: only what anybody may do."""

    def __init__(self, path: Path, *, may_mount: bool = True) -> None:
        self.path, self.may_mount = path, may_mount
        self.is_mounted = False

    def __enter__(self) -> Disk:
        self.path.mkdir(parents=True)
        options = f"size={SIZE},nr_inodes={INODES},mode=700,uid={os.getuid()}"
        command = ["mount", "-t", "tmpfs", "-o", options, "hyperfarm-chaos", str(self.path)]
        with contextlib.suppress(FileNotFoundError):
            self.is_mounted = (
                self.may_mount and subprocess.run(command, capture_output=True, check=False).returncode == 0
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], capture_output=True, check=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def fill(self, dice: random.Random, family: list[psutil.Process]) -> None:
        """Leave no room; `family` are the host's processes."""
        if not self.is_mounted:
            limit(family, FILE_LIMIT)
            return
        ballast = self.path / BALLAST
        ballast.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            if dice.random() < 0.3:
                for number in range(INODES):
                    (ballast / str(number)).touch()
            else:
                with (ballast / "block").open("wb", buffering=0) as out:
                    while True:
                        out.write(bytes(4096))

    def free(self, family: list[psutil.Process]) -> None:
        """Undo `fill`."""
        if self.is_mounted:
            shutil.rmtree(self.path / BALLAST, ignore_errors=True)
        else:
            limit(family, resource.RLIM_INFINITY)


def limit(family: list[psutil.Process], size: int) -> None:
    """Let these processes write no file beyond `size` bytes."""
    for process in family:
        with contextlib.suppress(psutil.Error):
            hard = process.rlimit(resource.RLIMIT_FSIZE)[1]
            process.rlimit(resource.RLIMIT_FSIZE, (size, hard))

"""What may not be left behind: processes, scratch folders, and, once collected, anything that nobody needs."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

from hyperfarm.store import Store
from tests.chaos.blob_books import check_orphans
from tests.chaos.books import Finding
from tests.chaos.farm import COMMAND, marked

GC_S = 120


def check_processes(mark: str, but: Collection[int] = ()) -> list[Finding]:
    """No process of the campaign lives."""
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            if process.pid not in but:
                text = f"process {process.pid} is left: {' '.join(process.cmdline())[:200]}"
                found.append(Finding(kind="process", text=text))
    return found


def check_scratch(folders: Iterable[Path]) -> list[Finding]:
    """No scratch folder lies in the folders for temporary files."""
    left = [str(path) for folder in folders for path in sorted(folder.glob("hyperfarm-*"))]
    if not left:
        return []
    return [Finding(kind="scratch", text=f"{len(left)} scratch folders are left", detail=left)]


def check_collected(store: Store, url: str, env: dict[str, str]) -> list[Finding]:
    """`hyperfarm gc` leaves no orphan, and then finds none itself.

    Code that nothing refers to may stay for a while: it says so, and a controller may be about to name it.
    """
    gc = [*COMMAND, "gc", "--mongo", url, "--older-than", "0", "--json"]
    done, again = _run([*gc, "--delete"], env), None
    try:
        removed = json.loads(done.stdout)
        again = _run(gc, env)
        left = json.loads(again.stdout)
    except ValueError:
        failed = again or done
        text = f"gc does not work: it ended with {failed.returncode}"
        return [Finding(kind="gc", text=text, detail=failed.stdout[-2000:] + failed.stderr[-2000:])]
    found = check_orphans(store, tolerated=[one["what"] for one in left["left_alone"]])
    for one in (done, again):
        if one.returncode != 0:
            found.append(Finding(kind="gc", text=f"gc ended with {one.returncode}", detail=one.stderr))
    if left["count"]:
        text = f"gc removed {removed['count']} things, and then found {left['count']} more"
        found.append(Finding(kind="gc", text=text, detail=[removed, left]))
    return found


def _run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GC_S,
        check=False,
    )

"""Jobs that another program than hyperfarm's search has queued: what they want to run, if it may be run here."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from hyperfarm import protocols, settings
from hyperfarm.blobs import Blobs
from hyperfarm.errors import BundleError
from hyperfarm.jobs import JobDoc
from hyperfarm.protocols import Command


class ForeignCommands:
    """The commands of foreign jobs, checked. `trusting`: without a signature too. Thread-safe."""

    def __init__(self, blobs: Blobs, *, trusting: bool) -> None:
        self._blobs, self._trusting = blobs, trusting
        self._lock = threading.Lock()
        self._payloads: dict[Any, bytes] = {}

    def command_of(self, job: JobDoc) -> Command:
        """What the job says is to be run. Raises BundleError, BundleRefused unless it may be; DatabaseError."""
        exp_key = job.get("exp_key")
        command, signature = protocols.parse((job.get("misc") or {}).get("cmd")), None
        if command.protocol in protocols.ATTACHED:
            file = self._blobs.experiment_attachment(exp_key, command.name)
            if file is None:
                raise BundleError(
                    f"its jobs name the attachment {command.name!r}, which is not in the database"
                )
            signature = file.get("signature")
            command = Command(protocol=command.protocol, name=command.name, payload=self._payload(file))
        if not self._trusting:
            protocols.check_signed(
                settings.farm_secret(), command, exp_key, job=job.get("cmd_signature"), attachment=signature
            )
        return command

    def _payload(self, file: dict[str, Any]) -> bytes:
        """The content of an attachment, which never changes once it has its id."""
        with self._lock:
            known = self._payloads.get(file["_id"])
        if known is not None:
            return known
        data = self._blobs.read_file(file)
        with self._lock:
            self._payloads.clear()  # One at a time: the next experiment's takes its place.
            self._payloads[file["_id"]] = data
        return data


def unpack(command: Command, folder: Path) -> Path:
    """Write the command into `folder/<its revision>/`, whole or not at all, and return that path."""
    target = folder / command.revision
    if protocols.is_saved(target):
        return target
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
    try:
        protocols.save(command, fresh)
        os.rename(fresh, target)
    except OSError:
        if not protocols.is_saved(target):  # Otherwise another process was faster.
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target

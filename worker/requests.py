"""What a running trial asks of its worker by messages: files, checkpoints, attachments, hyperopt's Ctrl."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfarm import settings
from hyperfarm.blobs import blob_ids
from hyperfarm.bundle import is_signed_checkpoint, sign_checkpoint
from hyperfarm.errors import (
    DatabaseError,
    DatabaseUnavailable,
    HyperfarmError,
    LeaseLost,
    OutcomeUnknown,
    UsageError,
)
from hyperfarm.values import encode_keys, to_plain
from hyperfarm.worker.wire import Message

if TYPE_CHECKING:
    from hyperfarm.worker.trial_run import TrialRun

log = logging.getLogger("hyperfarm.worker")
SNAPSHOT = (
    *("tid", "state", "spec", "result", "misc", "exp_key"),
    *("owner", "version", "book_time", "refresh_time"),
)
"""What hyperopt's own job documents hold, and so what `ctrl.trials` shows and `ctrl.inject_results` writes."""


class DiskFull(Exception):
    """There is no room left on this host for a file that the trial needs."""


def snapshot(doc: dict[str, Any]) -> dict[str, Any]:
    """A job as plain values, its times without a zone, as hyperopt shows them."""
    shown = {name: doc.get(name) for name in SNAPSHOT}
    for name in ("book_time", "refresh_time"):
        if isinstance(moment := shown[name], datetime):
            shown[name] = moment.replace(tzinfo=None)
    plain: dict[str, Any] = to_plain(shown)
    return plain


def answer(run: TrialRun, message: Message) -> Message:
    """Carry out one request of the child; an error goes back to it as a sentence."""
    try:
        return {"value": _handle(run, message)}
    except LeaseLost:
        raise
    except (HyperfarmError, OSError) as error:
        return {"error": str(error)}


def _handle(run: TrialRun, message: Message) -> Any:
    kind, blobs, claim = message["type"], run.farm.blobs, run.claim
    if kind == "save":
        path = Path(message["path"])
        ref = run.send(lambda: blobs.put_for(claim, path, message["name"], message["kind"]))
        _replace_artifact(run, ref)
    elif kind == "attach":
        name, blob = run.send(lambda: blobs.put_attachment(claim, message["name"], message["data"]))
        run.attachments[name] = blob
    elif kind == "attached":
        blob = run.attachments.get(message["name"])
        if blob is None:
            return None
        name = message["name"]
        return run.send(lambda: blobs.read_attachment({"_attachments": [[name, blob]]}, name))
    elif kind == "attachments":
        return list(run.attachments)
    elif kind == "detach":
        run.attachments.pop(message["name"], None)
    elif kind == "keep checkpoint":
        _keep_checkpoint(run, Path(message["path"]))
    elif kind == "last checkpoint":
        return _last_checkpoint(run)
    elif kind == "trials":
        rows = run.send(lambda: run.farm.store.job_rows(claim.exp_key, SNAPSHOT))
        return [snapshot(row) for row in rows]
    elif kind == "new tids":
        return run.send(lambda: run.farm.store.new_tids(message["count"]))
    elif kind == "inject":
        docs = [{name: doc.get(name) for name in SNAPSHOT} for doc in message["docs"]]
        run.send(lambda: run.farm.store.inject(claim, docs))
    elif kind == "checkpoint":
        stored = run.send(lambda: blobs.externalise(message["result"], claim))
        run.blobs_made += blob_ids(stored)
        run.send(lambda: run.farm.store.checkpoint(claim, encode_keys(stored)))
    return None


def _keep_checkpoint(run: TrialRun, path: Path) -> None:
    """Upload, commit, and only then delete the one before: there is always a whole one to resume from."""
    blobs, claim, before = run.farm.blobs, run.claim, run.checkpoint
    run.flush_reports()  # What was told before the checkpoint must not be lost when it is resumed.
    ref = run.send(lambda: blobs.put_for(claim, path, "checkpoint", "checkpoint"))
    run.blobs_made.append(ref["blob"])
    ref["signature"] = sign_checkpoint(settings.farm_secret(), ref["sha256"], claim.exp_key, claim.tid)
    run.send(lambda: run.farm.store.keep_checkpoint(claim, ref))
    # From here on it belongs to the job, whatever becomes of this attempt.
    run.blobs_made.remove(ref["blob"])
    run.checkpoint = ref
    if before is not None:
        run.send(lambda: blobs.delete([before["blob"]]))


def _last_checkpoint(run: TrialRun) -> str | None:
    """Fetch the checkpoint to a file for the child. One that cannot be read any more is passed over."""
    ref, child = run.checkpoint, run.slot.child
    if ref is None or child is None:
        return None
    if not is_signed_checkpoint(settings.farm_secret(), ref, run.claim.exp_key, run.claim.tid):
        where = f"trial {run.claim.tid} of {run.claim.exp_key}"
        log.warning("%s begins anew: its checkpoint was not made by a worker with this farm's secret", where)
        return None
    path = child.scratch / f"checkpoint-{ref['blob']}"
    try:
        if not path.exists():
            run.send(lambda: run.farm.blobs.save(ref, path))
    except (DatabaseUnavailable, OutcomeUnknown):
        raise
    except UsageError as error:
        raise DiskFull(str(error)) from error
    except DatabaseError as error:
        log.warning("trial %d of %s begins anew: %s", run.claim.tid, run.claim.exp_key, error)
        return None
    run.files_made.append(path)
    return str(path)


def _replace_artifact(run: TrialRun, ref: dict[str, Any]) -> None:
    before = run.artifacts.get(ref["name"])
    run.artifacts[ref["name"]] = ref
    run.blobs_made.append(ref["blob"])
    if before is not None:
        run.send(lambda: run.farm.blobs.delete([before["blob"]]))

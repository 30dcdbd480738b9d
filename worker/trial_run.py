"""One attempt at one job: everything that happens between claim and outcome."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfarm.blobs import blob_ids
from hyperfarm.errors import (
    DatabaseError,
    DatabaseUnavailable,
    LeaseLost,
    OutcomeUnknown,
)
from hyperfarm.jobs import Claim, Event, JobState, TrialLimits
from hyperfarm.retry import patiently
from hyperfarm.values import encode_keys
from hyperfarm.worker import requests
from hyperfarm.worker.bundle_cache import Code, Refused, UnknownRevision
from hyperfarm.worker.limits import MEMORY, LimitExceeded, Watch
from hyperfarm.worker.process import ChildDied, ChildProcess
from hyperfarm.worker.requests import DiskFull
from hyperfarm.worker.wire import Message

if TYPE_CHECKING:
    from hyperfarm.worker.slot import Slot

log = logging.getLogger("hyperfarm.worker")
REPORT_INTERVAL_S = 1.0


class Unusable(Exception):
    """The child could not load the bundle; `message` is what it said."""

    def __init__(self, message: Message) -> None:
        super().__init__(": ".join(message["error"]))
        self.message = message


class TrialRun:
    """One attempt at one job. `crashed` says why its process died by itself, if it did."""

    def __init__(self, slot: Slot, claim: Claim) -> None:
        self.slot, self.farm, self.claim = slot, slot.farm, claim
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.attachments: dict[str, Any] = {}
        self.reports: list[Message] = []
        self.reports_due = 0.0
        self.blobs_made: list[Any] = []
        self.checkpoint: dict[str, Any] | None = claim.doc.get("checkpoint")
        self.files_made: list[Path] = []
        self.crashed: str | None = None
        self.outcome: JobState | None = None
        self.limits = TrialLimits()

    def carry_out(self) -> None:
        """Run the attempt to its outcome. Raises LeaseLost when the job is not ours any more."""
        claim, options = self.claim, self.farm.options
        self.limits = TrialLimits.of(claim.doc).tightened(options.trial_timeout_s, options.trial_memory)
        try:
            code = self.send(lambda: self.farm.codes.for_job(claim.doc))
        except Refused as refused:
            self._give_back(str(refused))
            return
        except UnknownRevision as unknown:
            self.cut_off(str(unknown))
            return
        try:
            child = self.slot.ready_child(claim, code)
            child.log.clear()
            child.trials += 1
            child.send(self._order(child, code))
            answer = self._converse(child)
        except Unusable as unusable:
            self._not_loadable(unusable, code)
        except ChildDied as died:
            self._child_died(died)
        except LimitExceeded as limit:
            self._stop_for(limit)
        except DiskFull as full:
            self._disk_full(str(full))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._disk_full(str(error))  # Not even the scratch folder of a new process could be made.
        else:
            if answer.get("disk_full"):
                self._disk_full(": ".join(answer["error"]))
            else:
                self._finish(answer, child)

    def _order(self, child: ChildProcess, code: Code) -> Message:
        doc = self.claim.doc
        return {
            "type": "job",
            "doc": {**requests.snapshot(doc), "attempt": self.claim.attempt, "result": {"status": "new"}},
            "attempt": self.claim.attempt,
            "scratch": str(child.scratch),
            "workdir": self._workdir(),
            "hyperopt_losses": code.hyperopt_losses,
        }

    def _workdir(self) -> str | None:
        """Where the objective runs, if not in a scratch folder: hyperopt's rule, with the worker's own first."""
        if self.farm.options.workdir is not None:
            return str(self.farm.options.workdir.expanduser().absolute())
        root = self.claim.doc["misc"].get("workdir")
        return (
            os.path.abspath(os.path.expanduser(os.path.join(root, str(self.claim.job_id)))) if root else None
        )

    def _converse(self, child: ChildProcess) -> Message:
        """Answer the child's messages until its result comes. Raises LimitExceeded."""
        watch = Watch(self.limits)
        while True:
            until_report = max(0.0, self.reports_due - time.monotonic()) if self.reports else None
            waits = [wait for wait in (until_report, watch.wait_s()) if wait is not None]
            message = child.receive(min(waits, default=None))
            if message is not None and message["type"] == "result":
                self.flush_reports()
                return message
            if message is not None and message["type"] == "report":
                if not self.reports:
                    self.reports_due = time.monotonic() + REPORT_INTERVAL_S
                self.reports.append(message["values"])
            elif message is not None:
                child.send(requests.answer(self, message))
            if self.reports and time.monotonic() >= self.reports_due:
                self.flush_reports()
            watch.check(child)

    def _stop_for(self, limit: LimitExceeded) -> None:
        """End the trial as failed: another attempt would take as much."""
        child = self.slot.child
        assert child is not None
        if limit.kind == MEMORY and child.trials > 1:
            # What earlier trials left in the process is not this one's: a new process tells.
            self._give_back(f"{limit}; its process had run {child.trials - 1} trials before")
            return
        child.kill()
        child.rest_of_output()
        self.flush_reports()
        fields = {"error": [limit.kind, str(limit)], "result": {"status": "fail"}, **self._kept(child)}
        self.slot.drop_child()
        self._deliver(JobState.ERROR, fields)

    def flush_reports(self) -> None:
        reports, self.reports = self.reports, []
        if reports:
            self.send(lambda: self.farm.store.add_reports(self.claim, reports))

    def _finish(self, answer: Message, child: ChildProcess) -> None:
        fields: dict[str, Any] = {"duration": answer["duration_s"], **self._kept(child)}
        if "result" in answer:
            state = JobState.DONE
            blobs, claim = self.farm.blobs, self.claim
            stored = self.send(lambda: blobs.externalise(answer["result"], claim))
            self.blobs_made += blob_ids(stored)
            fields["result"] = encode_keys(stored)
            if answer["notes"]:
                fields["notes"] = answer["notes"][:20]
        else:
            state = JobState.ERROR
            fields |= {"error": answer["error"], "traceback": answer["traceback"]}
            fields["result"] = {"status": "fail"}
        self._deliver(state, fields)

    def _keep_no_useless_model(self, fields: dict[str, Any]) -> None:
        """A model that can never be among the best is not stored at all, when only the best are kept."""
        result, keep = fields["result"], self.limits.keep_models
        loss = result.get("loss")
        ranked = result.get("status") == "ok" and isinstance(loss, (int, float)) and not math.isnan(loss)
        models = [one for one in fields.get("artifacts", ()) if one["kind"] == "model"]
        if keep is None or not models or (ranked and keep > 0):
            return
        fields["artifacts"] = [one for one in fields["artifacts"] if one["kind"] != "model"]
        fields["models_removed"] = True

    def _prune_models(self, fields: dict[str, Any]) -> None:
        """Remove the models that this trial's model has pushed out of the best; gc does it if this fails."""
        keep = self.limits.keep_models
        if keep is None:
            return
        kept = [one["blob"] for one in fields.get("artifacts", ())]
        dropped = [one["blob"] for one in self.artifacts.values() if one["blob"] not in kept]
        exp_key = self.claim.exp_key
        try:
            pruned = self.send(lambda: self.farm.store.prune_models(exp_key, keep)) if kept else []
            self.send(lambda: self.farm.blobs.delete([*dropped, *pruned]))
        except DatabaseError as error:
            log.warning("models of %s that are not among the best remain for now: %s", exp_key, error)

    def _deliver(self, state: JobState, fields: dict[str, Any]) -> None:
        self._keep_no_useless_model(fields)
        try:
            self.send(lambda: self.farm.store.finish(self.claim, state, fields))
        except (DatabaseUnavailable, OutcomeUnknown):
            raise
        except DatabaseError as error:
            # MongoDB will not have this result, however often it is computed.
            state = JobState.ERROR
            fields = {"error": ["ResultNotStored", str(error)], "result": {"status": "fail"}}
            self.discard()
            self.send(lambda: self.farm.store.finish(self.claim, state, fields))
        self._prune_models(fields)
        if self.checkpoint is not None:
            self._forget(self.checkpoint["blob"])
        if "log" in fields:
            self._forget_last_log()
        self.outcome = state
        outcome = fields["result"].get("loss", fields.get("error"))
        log.info("trial %d of %s: %s %s", self.claim.tid, self.claim.exp_key, state.label, outcome)

    def _forget_last_log(self) -> None:
        """Delete the log of the attempt before, which this one's has replaced."""
        before = self.claim.doc.get("log")
        if before is not None:
            self._forget(before["blob"])

    def _forget(self, blob: Any) -> None:
        with contextlib.suppress(DatabaseError):  # What is left now, gc finds.
            self.farm.blobs.delete([blob])

    def _kept(self, child: ChildProcess | None) -> dict[str, Any]:
        """What is stored beside the outcome: artifacts, attachments, output."""
        kept: dict[str, Any] = {}
        if self.artifacts:
            kept["artifacts"] = list(self.artifacts.values())
        if self.attachments:
            kept["_attachments"] = [[name, blob] for name, blob in self.attachments.items()]
        text = child.log.content() if child is not None else b""
        if text:
            kept["log"] = self._store_log(text)
        return kept

    def _store_log(self, text: bytes) -> dict[str, Any]:
        ref: dict[str, Any] = self.send(lambda: self.farm.blobs.put_for(self.claim, text, "log", "log"))
        self.blobs_made.append(ref["blob"])
        return ref

    def _not_loadable(self, unusable: Unusable, code: Code) -> None:
        """A module that this host lacks is the host's lack; anything else is the objective's fault."""
        message, child = unusable.message, self.slot.child
        if message["missing_module"] is not None:
            reason = str(unusable)
            self.farm.codes.refuse(self.claim.exp_key, code.revision, reason)
            self._give_back(reason)
        else:
            fields = {
                "error": message["error"],
                "traceback": message["traceback"],
                "result": {"status": "fail"},
                **self._kept(child),
            }
            self._deliver(JobState.ERROR, fields)
        self.slot.drop_child()

    def _child_died(self, died: ChildDied) -> None:
        if self.farm.leaving:
            self._give_back("its worker was stopped")
            return
        if self.farm.is_lost(self.claim):
            raise LeaseLost(f"trial {self.claim.tid} is no longer this worker's; it was stopped")
        text = self.slot.child.log.content() if self.slot.child is not None else b""
        self.crashed = str(died)
        self.slot.drop_child()
        log.warning("trial %d of %s: %s", self.claim.tid, self.claim.exp_key, died)
        self.cut_off(str(died), text)

    def _disk_full(self, reason: str) -> None:
        """This host's trouble and not the trial's fault: it is tried again, elsewhere if this slot has to rest."""
        self.crashed = f"no room on this host's disk: {reason}"
        text = self.slot.child.log.content() if self.slot.child is not None else b""
        self.slot.drop_child()
        log.warning("trial %d of %s: %s", self.claim.tid, self.claim.exp_key, self.crashed)
        self.cut_off(self.crashed, text)

    def cut_off(self, reason: str, output: bytes = b"") -> None:
        """Record that this attempt ended without a result; the job is tried again while attempts remain."""
        self.discard()
        fields = {"log": self._store_log(output)} if output else {}
        event = self.send(lambda: self.farm.store.end_attempt(self.claim, reason, fields))
        if event is None:
            self.discard()
            return
        if output:
            self._forget_last_log()
        if event is Event.GIVE_UP and self.checkpoint is not None:
            self._forget(self.checkpoint["blob"])

    def _give_back(self, reason: str) -> None:
        self.slot.drop_child()
        self.send(lambda: self.farm.store.release(self.claim, reason))
        self.discard()

    def discard(self) -> None:
        """Remove the blobs of an attempt whose outcome is not kept; what cannot be removed now, gc finds."""
        made, self.blobs_made = self.blobs_made, []
        attached, self.attachments = list(self.attachments.values()), {}
        self.artifacts = {}
        with contextlib.suppress(DatabaseError):
            self.farm.blobs.delete(made, attached)

    def clean_up(self) -> None:
        """Remove the files that were fetched for this attempt."""
        for path in self.files_made:
            path.unlink(missing_ok=True)

    def send(self, call: Any) -> Any:
        """Write to the database, waiting for it while it is away."""
        return patiently(call, patience_s=self.farm.options.patience_s, stop=lambda: self.farm.out_of_time)

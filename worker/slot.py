"""One slot: claims a job, has its child process run it, delivers the outcome, and again."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfarm.blobs import blob_ids
from hyperfarm.errors import DatabaseError, DatabaseUnavailable, LeaseLost, OutcomeUnknown
from hyperfarm.jobs import Claim, JobState
from hyperfarm.retry import patiently
from hyperfarm.values import encode_keys
from hyperfarm.worker.bundle_cache import Code, Refused, UnknownRevision
from hyperfarm.worker.process import ChildDied, ChildProcess
from hyperfarm.worker.wire import Message

if TYPE_CHECKING:
    from hyperfarm.worker.supervisor import Supervisor

log = logging.getLogger("hyperfarm.worker")
REPORT_INTERVAL_S = 1.0


class Unusable(Exception):
    """The child could not load the bundle; `message` is what it said."""

    def __init__(self, message: Message) -> None:
        super().__init__(": ".join(message["error"]))
        self.message = message


class Slot(threading.Thread):
    """A thread that serves one slot until the supervisor stops claiming."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        super().__init__(name=f"slot {number}", daemon=True)
        self.number = number
        self.farm = supervisor
        self.child: ChildProcess | None = None
        self.loaded: tuple[str | None, str] | None = None
        self.startup_s = 0.0
        self.token: str | None = None
        self.jobs_done = 0

    def run(self) -> None:
        try:
            while (claim := self.farm.next_claim(self)) is not None:
                self._serve(claim)
        except DatabaseError as error:
            if not self.farm.leaving:
                log.error("slot %d stops: %s", self.number, error)
            self.farm.fail(str(error))
        except Exception as error:
            log.exception("slot %d stops at an error of hyperfarm's own", self.number)
            self.farm.fail(f"{type(error).__name__}: {error}")
        finally:
            self.drop_child()

    def drop_child(self) -> None:
        child, self.child, self.loaded = self.child, None, None
        if child is not None:
            child.close()

    def kill_child(self, token: str | None = None) -> None:
        """Kill the child from another thread; this slot's thread notices and does the rest.

        With `token` only if it still runs the job of that lease.
        """
        child = self.child
        if child is not None and token in (None, self.token):
            child.kill()

    def _serve(self, claim: Claim) -> None:
        started = time.monotonic()
        self.token = claim.lease.token
        run = TrialRun(self, claim)
        try:
            run.carry_out()
        except LeaseLost as lost:
            log.warning("%s", lost)
            run.discard()
            self.drop_child()
        except (DatabaseUnavailable, OutcomeUnknown):
            raise
        except Exception as error:
            # Whatever it is, it must not cost the farm this slot, nor leave the job running for ever.
            log.exception("slot %d: an error of hyperfarm's own", self.number)
            self.drop_child()
            run.cut_off(f"an error in the worker: {type(error).__name__}: {error}")
        finally:
            self.token = None
            self.farm.let_go(claim, time.monotonic() - started)
            self.jobs_done += 1
            if self.farm.options.fresh:
                self.drop_child()

    def ready_child(self, claim: Claim, code: Code) -> ChildProcess:
        """Return a child that has the code loaded: the warm one, or a new one.

        Raises ChildDied, or Unusable when the code cannot be loaded.
        """
        wanted = (claim.exp_key, code.revision)
        if self.child is not None and self.loaded == wanted:
            return self.child
        self.drop_child()
        started = time.monotonic()
        child = self.child = ChildProcess(code.revision)
        if self.farm.leaving:  # The supervisor may have killed the slots' children a moment ago.
            child.kill()
        child.send({"type": "load", "folder": str(code.folder)})
        answer = child.receive()
        assert answer is not None
        if answer["type"] == "unusable":
            raise Unusable(answer)
        self.startup_s = time.monotonic() - started
        self.loaded = wanted
        return child


class TrialRun:
    """One attempt at one job: everything that happens between claim and outcome."""

    def __init__(self, slot: Slot, claim: Claim) -> None:
        self.slot, self.farm, self.claim = slot, slot.farm, claim
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.attachments: dict[str, Any] = {}
        self.reports: list[Message] = []
        self.reports_due = 0.0
        self.blobs_made: list[Any] = []

    def carry_out(self) -> None:
        """Run the attempt to its outcome. Raises LeaseLost when the job is not ours any more."""
        claim = self.claim
        try:
            code = self._send(lambda: self.farm.codes.get(claim.exp_key, claim.doc.get("bundle")))
        except Refused as refused:
            self._give_back(str(refused))
            return
        except UnknownRevision as unknown:
            self.cut_off(str(unknown))
            return
        try:
            child = self.slot.ready_child(claim, code)
            child.log.clear()
            child.send(self._order(child, code))
            answer = self._converse(child)
        except Unusable as unusable:
            self._not_loadable(unusable, code)
        except ChildDied as died:
            self._child_died(died)
        else:
            self._finish(answer, child)

    def _order(self, child: ChildProcess, code: Code) -> Message:
        doc = self.claim.doc
        shown = {key: doc.get(key) for key in ("tid", "exp_key", "misc", "spec", "owner", "version", "state")}
        return {
            "type": "job",
            "doc": {**shown, "result": {"status": "new"}},
            "attempt": self.claim.attempt,
            "scratch": str(child.scratch),
            "hyperopt_losses": code.hyperopt_losses,
        }

    def _converse(self, child: ChildProcess) -> Message:
        """Answer the child's messages until its result comes."""
        while True:
            wait = None if not self.reports else max(0.0, self.reports_due - time.monotonic())
            message = child.receive(wait)
            if message is not None and message["type"] == "result":
                self._flush_reports()
                return message
            if message is not None and message["type"] == "report":
                if not self.reports:
                    self.reports_due = time.monotonic() + REPORT_INTERVAL_S
                self.reports.append(message["values"])
            elif message is not None:
                child.send(self._answer(message))
            if self.reports and time.monotonic() >= self.reports_due:
                self._flush_reports()

    def _flush_reports(self) -> None:
        reports, self.reports = self.reports, []
        if reports:
            self._send(lambda: self.farm.store.add_reports(self.claim, reports))

    def _answer(self, message: Message) -> Message:
        """Carry out one request of the child; an error goes back to it as a sentence."""
        try:
            return {"value": self._handle(message)}
        except (DatabaseError, OSError) as error:
            return {"error": str(error)}

    def _handle(self, message: Message) -> Any:
        kind, blobs, claim = message["type"], self.farm.blobs, self.claim
        if kind == "save":
            path = Path(message["path"])
            ref = self._send(lambda: blobs.put_for(claim, path, message["name"], message["kind"]))
            self._replace_artifact(ref)
        elif kind == "attach":
            name, blob = self._send(lambda: blobs.put_attachment(claim, message["name"], message["data"]))
            self.attachments[name] = blob
        elif kind == "attached":
            blob = self.attachments.get(message["name"])
            if blob is None:
                return None
            name = message["name"]
            return self._send(lambda: blobs.read_attachment({"_attachments": [[name, blob]]}, name))
        elif kind == "attachments":
            return list(self.attachments)
        elif kind == "detach":
            self.attachments.pop(message["name"], None)
        elif kind == "checkpoint":
            stored = self._send(lambda: blobs.externalise(message["result"], claim))
            self.blobs_made += blob_ids(stored)
            self._send(lambda: self.farm.store.checkpoint(claim, encode_keys(stored)))
        return None

    def _replace_artifact(self, ref: dict[str, Any]) -> None:
        before = self.artifacts.get(ref["name"])
        self.artifacts[ref["name"]] = ref
        self.blobs_made.append(ref["blob"])
        if before is not None:
            self._send(lambda: self.farm.blobs.delete([before["blob"]]))

    def _finish(self, answer: Message, child: ChildProcess) -> None:
        fields: dict[str, Any] = {"duration": answer["duration_s"], **self._kept(child)}
        if "result" in answer:
            state = JobState.DONE
            blobs, claim = self.farm.blobs, self.claim
            stored = self._send(lambda: blobs.externalise(answer["result"], claim))
            self.blobs_made += blob_ids(stored)
            fields["result"] = encode_keys(stored)
            if answer["notes"]:
                fields["notes"] = answer["notes"][:20]
        else:
            state = JobState.ERROR
            fields |= {"error": answer["error"], "traceback": answer["traceback"]}
            fields["result"] = {"status": "fail"}
        self._deliver(state, fields)

    def _deliver(self, state: JobState, fields: dict[str, Any]) -> None:
        try:
            self._send(lambda: self.farm.store.finish(self.claim, state, fields))
        except (DatabaseUnavailable, OutcomeUnknown):
            raise
        except DatabaseError as error:
            # MongoDB will not have this result, however often it is computed.
            state = JobState.ERROR
            fields = {"error": ["ResultNotStored", str(error)], "result": {"status": "fail"}}
            self.discard()
            self._send(lambda: self.farm.store.finish(self.claim, state, fields))
        outcome = fields["result"].get("loss", fields.get("error"))
        log.info("trial %d of %s: %s %s", self.claim.tid, self.claim.exp_key, state.label, outcome)

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
        ref: dict[str, Any] = self._send(lambda: self.farm.blobs.put_for(self.claim, text, "log", "log"))
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
        self.slot.drop_child()
        log.warning("trial %d of %s: %s", self.claim.tid, self.claim.exp_key, died)
        self.cut_off(str(died), text)

    def cut_off(self, reason: str, output: bytes = b"") -> None:
        """Record that this attempt ended without a result; the job is tried again while attempts remain."""
        self.discard()
        fields = {"log": self._store_log(output)} if output else {}
        if self._send(lambda: self.farm.store.end_attempt(self.claim, reason, fields)) is None:
            self.discard()

    def _give_back(self, reason: str) -> None:
        self.slot.drop_child()
        self._send(lambda: self.farm.store.release(self.claim, reason))
        self.discard()

    def discard(self) -> None:
        """Remove the blobs of an attempt whose outcome is not kept; what cannot be removed now, gc finds."""
        made, self.blobs_made = self.blobs_made, []
        attached, self.attachments = list(self.attachments.values()), {}
        self.artifacts = {}
        with contextlib.suppress(DatabaseError):
            self.farm.blobs.delete(made, attached)

    def _send(self, call: Any) -> Any:
        """Write to the database, waiting for it while it is away."""
        return patiently(call, stop=lambda: self.farm.out_of_time)

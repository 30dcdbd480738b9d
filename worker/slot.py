"""One slot: claims a job, has its child process run it, delivers the outcome, and again."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from hyperfarm.errors import DatabaseError, DatabaseUnavailable, LeaseLost, OutcomeUnknown
from hyperfarm.jobs import Claim
from hyperfarm.worker.bundle_cache import Code
from hyperfarm.worker.limits import rest_s
from hyperfarm.worker.process import ChildDied, ChildProcess
from hyperfarm.worker.trial_run import TrialRun, Unusable

if TYPE_CHECKING:
    from hyperfarm.worker.supervisor import Supervisor

log = logging.getLogger("hyperfarm.worker")
LONGEST_LOAD_S = 600.0
"""A process that takes longer to import the objective hangs; the host is more likely to blame than the trial."""


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
        self.crashes = 0
        self.pause: dict[str, Any] | None = None
        """What the worker tells about this slot while it rests after crashes."""

    def run(self) -> None:
        try:
            while (claim := self.farm.next_claim(self)) is not None:
                self._serve(claim)
                self._rest()
        except DatabaseError as error:
            if self.farm.is_over:
                return
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

    def tell_draining(self) -> None:
        """Let the running objective know that the worker stops soon; any thread may call it."""
        child = self.child
        if child is not None:
            child.tell_draining()

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
            if self.farm.is_over:
                return  # The connection was closed under us: the worker has left.
            # Whatever it is, it must not cost the farm this slot, nor leave the job running for ever.
            log.exception("slot %d: an error of hyperfarm's own", self.number)
            self.drop_child()
            run.cut_off(f"an error in the worker: {type(error).__name__}: {error}")
        finally:
            self.token = None
            self.farm.let_go(claim, time.monotonic() - started)
            run.clean_up()
            self.farm.count(run.outcome)
            self._count(run)
            if self.farm.options.fresh:
                self.drop_child()

    def _count(self, run: TrialRun) -> None:
        """Count crashes in a row; they may be this host's fault (memory, a driver) and not the trials'."""
        if run.crashed is None:
            self.crashes = 0
            return
        self.crashes += 1
        seconds = rest_s(self.crashes)
        if seconds:
            self.pause = {
                "slot": self.number,
                "crashes": self.crashes,
                "reason": run.crashed,
                "exp_key": run.claim.exp_key,
                "seconds": seconds,
                "until": None,
            }

    def _rest(self) -> None:
        """Claim nothing for a while after crashes in a row, and say so; a worker that stops is not held up."""
        if self.pause is None:
            return
        seconds = self.pause["seconds"]
        log.warning("slot %d rests for %.0f s after %d crashes in a row", self.number, seconds, self.crashes)
        self.farm.rest(self, seconds)

    def ready_child(self, claim: Claim, code: Code) -> ChildProcess:
        """Return a child that has the code loaded: the warm one, or a new one.

        Raises ChildDied, or Unusable when the code cannot be loaded.
        """
        wanted = (claim.exp_key, code.revision)
        if self.child is not None and self.loaded == wanted:
            return self.child
        self.drop_child()
        started = time.monotonic()
        child = self.child = ChildProcess(code.revision, self.farm.devices_of(self.number))
        if self.farm.is_draining:  # The supervisor may have told the slots' children a moment ago.
            child.tell_draining()
        if self.farm.leaving:  # Or killed them.
            child.kill()
        child.send({"type": "load", "folder": str(code.folder)})
        answer = child.receive(LONGEST_LOAD_S)
        if answer is None:
            raise ChildDied(f"it did not load the code within {LONGEST_LOAD_S:.0f} s")
        if answer["type"] == "unusable":
            raise Unusable(answer)
        child.guardian = answer["guardian"]
        self.startup_s = time.monotonic() - started
        self.loaded = wanted
        return child

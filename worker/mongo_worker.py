"""hyperopt's MongoWorker: runs one job in this very process, under a lease that a thread of its own renews."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from hyperopt.base import Ctrl, Domain, spec_from_misc

from hyperfarm import bundle, protocols, results, values
from hyperfarm.blobs import Blobs
from hyperfarm.errors import BundleError, BundleRefused, DatabaseError, HyperfarmError, LeaseLost
from hyperfarm.jobs import DEFAULT_LEASE_S, Claim, JobState
from hyperfarm.mongo_jobs import MongoJobs
from hyperfarm.mongo_trials import MongoTrials, TrialAttachments
from hyperfarm.protocols import Function
from hyperfarm.retry import PATIENCE_S, patiently
from hyperfarm.store import Store, new_token
from hyperfarm.worker.bundle_cache import BundleCache, Refused, UnknownRevision
from hyperfarm.worker.foreign import ForeignCommands
from hyperfarm.worker.workplace import workplace

log = logging.getLogger("hyperfarm.worker")
SHORTEST_PAUSE_S = 0.05
LOOK_S = 0.2


class ReserveTimeout(Exception):
    """No job could be reserved in the given time."""


class NotHere(HyperfarmError):
    """A job must not or cannot be run on this host; it is in the queue again."""


class MongoCtrl(Ctrl):  # type: ignore[misc]
    """What an objective that asks for it gets: `current_trial`, `trials`, `attachments`, `checkpoint`."""

    def __init__(self, trials: MongoTrials, current_trial: dict[str, Any], read_only: bool) -> None:
        self.trials, self.current_trial, self.read_only = trials, current_trial, read_only

    def checkpoint(self, result: dict[str, Any] | None = None) -> Any:
        """Say that the trial is alive, and store a partial result if there is one.

        Raises OperationFailure when the trial is somebody else's by now.
        """
        if self.read_only:
            return None
        self.trials.handle.refresh(self.current_trial)
        if result is None:
            return None
        fields = {"result": values.encode_keys(values.to_plain(result))}
        return self.trials.handle.update(self.current_trial, fields)

    @property
    def attachments(self) -> TrialAttachments:
        return self.trials.trial_attachments(self.current_trial)


class MongoWorker:
    """Runs jobs one at a time, in this process and thread.

    `mj` the database; `poll_interval` seconds between looks at the queue, at most; `workdir` where objectives run,
    else `<the job's workdir, or the current folder>/<id of the job>`; `exp_key` restricts it to one experiment;
    `logfilename` gets what is logged during a trial. `trust_unsigned`: jobs without the farm's signature are run.
    """

    poll_interval = 3.0
    workdir: str | None = None

    def __init__(
        self,
        mj: MongoJobs,
        poll_interval: float = poll_interval,
        workdir: str | None = workdir,
        exp_key: str | None = None,
        logfilename: str | None = "logfile.txt",
        *,
        trust_unsigned: bool = False,
        lease_s: float = DEFAULT_LEASE_S,
    ) -> None:
        self.mj, self.poll_interval, self.workdir = mj, poll_interval, workdir
        self.exp_key, self.logfilename, self.lease_s = exp_key, logfilename, lease_s
        self._store = Store.of(mj.db)
        self._blobs = Blobs(mj.db)
        self._codes = BundleCache(self._store, self._blobs, trust_unsigned=trust_unsigned)
        self._foreign = ForeignCommands(self._blobs, trusting=trust_unsigned)
        self._loaded: tuple[str, Function] | None = None

    def run_one(
        self,
        host_id: Any = None,
        reserve_timeout: float | None = None,
        erase_created_workdir: bool = False,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Reserve a job, run it, store its result; or return without, as soon as `stop()` while there is none.

        Raises ReserveTimeout after `reserve_timeout` seconds without a job (None or 0: waits for ever); what the
        objective raises, after it was stored with the job; NotHere; LeaseLost when the job was taken away meanwhile.
        """
        owner = [f"{socket.gethostname()}:{os.getpid()}"] if host_id is None else host_id
        claim = self._reserve(list(owner) if isinstance(owner, tuple) else owner, reserve_timeout, stop)
        if claim is None:
            return
        trials = MongoTrials(self.mj, exp_key=claim.exp_key, refresh=False)
        ctrl = MongoCtrl(trials, claim.doc, read_only=False)
        with self._renewing(claim), self._logging():
            try:
                self._run(claim, self._function(claim), ctrl, erase_created_workdir)
            except (LeaseLost, NotHere):
                raise
            except Exception as error:
                self._fail(claim, error)
                raise
            except BaseException as end:  # Somebody stops us: another worker shall have it.
                self._give_back(claim, f"its worker was stopped ({type(end).__name__})")
                raise

    # ---- the steps ---------------------------------------------------------------------------------

    def _reserve(self, owner: Any, timeout_s: float | None, stop: Callable[[], bool]) -> Claim | None:
        began = time.monotonic()
        worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        while True:
            claim = self._claim(owner, worker)
            if claim is not None:
                return claim
            if timeout_s and time.monotonic() - began > timeout_s:
                raise ReserveTimeout(f"no job came within {timeout_s:g} s")
            until = time.monotonic() + random.uniform(0.5, 1.0) * float(self.poll_interval)
            while not stop() and (left := until - time.monotonic()) > 0:
                time.sleep(min(max(SHORTEST_PAUSE_S, left), LOOK_S))
            if stop():
                return None

    def _claim(self, owner: Any, worker: str) -> Claim | None:
        """Claim the next job if there is one; a claim of unknown outcome is looked up before another is made."""
        token, sent = new_token(), False

        def claim() -> Claim | None:
            nonlocal sent
            if sent and (found := self._store.claimed(token)) is not None:
                return found
            waiting = self._store.waiting().exp_keys
            for key in waiting if self.exp_key is None else [key for key in waiting if key == self.exp_key]:
                sent = True
                claimed = self._store.claim(
                    key, worker=worker, owner=owner, token=token, lease_s=self.lease_s
                )
                if claimed is not None:
                    return claimed
            return None

        found: Claim | None = self._send(claim)
        return found

    def _function(self, claim: Claim) -> Function:
        """What the job wants to run; loaded once, as long as the next job wants the same.

        Raises NotHere, with the job given back, when it must not or cannot be run on this host.
        """
        try:
            return self._load(claim)
        except (BundleError, Refused, UnknownRevision, ModuleNotFoundError) as error:
            self._give_back(claim, str(error))
            raise NotHere(str(error)) from error

    def _load(self, claim: Claim) -> Function:
        try:
            command = self._send(lambda: self._foreign.command_of(claim.doc))
        except BundleRefused:
            raise
        except BundleError:
            if claim.doc.get("bundle") is None:
                raise
            return self._from_bundle(claim)
        if self._loaded is None or self._loaded[0] != command.revision:
            self._loaded = None
            self._loaded = command.revision, protocols.worker_function(command)
        return self._loaded[1]

    def _from_bundle(self, claim: Claim) -> Function:
        code = self._send(lambda: self._codes.for_job(claim.doc))
        if self._loaded is None or self._loaded[0] != code.revision:
            loaded = bundle.load(code.folder)
            domain = Domain(loaded.fn, loaded.space, pass_expr_memo_ctrl=loaded.pass_expr_memo_ctrl)
            self._loaded = code.revision, domain.evaluate
        return self._loaded[1]

    def _run(self, claim: Claim, function: Function, ctrl: MongoCtrl, erase: bool) -> None:
        began = time.monotonic()
        root = claim.doc["misc"].get("workdir") or ""
        with workplace(self.workdir or os.path.join(root, str(claim.job_id)), erase=erase):
            returned = function(spec_from_misc(claim.doc["misc"]), ctrl)
        result = results.interpret(returned, hyperopt_losses=True)
        for name, data in (result.pop("attachments", None) or {}).items():
            ctrl.attachments[name] = data
        plain = values.to_plain(result, note=log.warning)
        stored = self._send(lambda: self._blobs.externalise(plain, claim))
        fields = {"result": values.encode_keys(stored), "duration": time.monotonic() - began}
        self._send(lambda: self._store.finish(claim, JobState.DONE, fields))

    def _fail(self, claim: Claim, error: Exception) -> None:
        fields = {
            "error": [type(error).__name__, str(error)[:4000]],
            "traceback": traceback.format_exc()[-60_000:],
            "result": {"status": "fail"},
        }
        self._send(lambda: self._store.finish(claim, JobState.ERROR, fields))

    def _give_back(self, claim: Claim, reason: str) -> None:
        with contextlib.suppress(DatabaseError):  # Otherwise its lease expires.
            self._store.release(claim, reason)

    @contextlib.contextmanager
    def _renewing(self, claim: Claim) -> Iterator[None]:
        """Keep the lease during the block, from a thread: an objective that holds the GIL for long loses it."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self.lease_s / 3):
                try:
                    patiently(
                        lambda: self._store.renew([claim.lease.token], self.lease_s),
                        patience_s=PATIENCE_S,
                        stop=over.is_set,
                    )
                except DatabaseError as error:
                    log.warning("trial %d: %s", claim.tid, error)

        thread = threading.Thread(target=renew, daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        """Append what is logged during the block to the log file."""
        if not self.logfilename:
            yield
            return
        handler = logging.FileHandler(self.logfilename)
        handler.setFormatter(logging.Formatter("%(levelname)s (%(name)s): %(message)s"))
        handler.setLevel(logging.INFO)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()

    def _send(self, call: Any) -> Any:
        return patiently(call, patience_s=PATIENCE_S)

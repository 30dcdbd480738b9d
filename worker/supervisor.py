"""The supervisor of one host: its slots, its leases, its heartbeat, and how it stops.

Stopping, in this order: claim no more; let running trials finish for a grace period (drain) or give their
jobs back at once (leave); stop the heartbeat; unregister.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import random
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import hyperfarm
from hyperfarm.blobs import Blobs
from hyperfarm.errors import DatabaseError, DatabaseUnavailable, OutcomeUnknown
from hyperfarm.jobs import DEFAULT_LEASE_S, Claim, JobState, TrialLimits
from hyperfarm.reaping import Reaper
from hyperfarm.retry import PATIENCE_S, patiently
from hyperfarm.store import Store, new_token
from hyperfarm.wakeup import Wakeup
from hyperfarm.worker.bundle_cache import BundleCache
from hyperfarm.worker.devices import share
from hyperfarm.worker.fairness import FairShare
from hyperfarm.worker.slot import Slot
from hyperfarm.worker.stop_rules import StopLimits, StopRules

log = logging.getLogger("hyperfarm.worker")
T = TypeVar("T")
LAUNCH = "HYPERFARM_LAUNCH"
"""Set by whoever starts a worker and wants to find it again in `workers`."""
HEARTBEAT_S = 30.0
IDLE_LOOK_S = 20.0
"""Even without news an idle host looks at the queue this often, by default: hyperopt's controllers do not ring."""
FOREIGN_LOOK_S, FOREIGN_LOOKS_S = 1.0, 60.0
"""After a job of theirs it looks that often, for so long."""
WAITING_KNOWN_S = 0.1
"""For so long a slot may rely on what was found to wait (see `_try_to_claim`)."""
JUST_AFTER_S = 0.02
LOOK_S = 0.05
BRIEFLY_S = 2.0
UNREGISTER_S = 0.5
LEAVE_S = 1.5
"""How long leaving may take once the children are killed."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How one supervisor works.

    `name`: what its host is called, else its host name. `devices`: the GPUs that the slots share out among
    them; None leaves CUDA_VISIBLE_DEVICES alone. `exp_keys` empty: it serves every experiment.
    `trial_timeout_s` and `trial_memory` (bytes) bound every trial on this host, besides what its experiment
    says. `patience_s`: how long the database may be away. `trust_unsigned`: jobs that another program has
    queued are run without the farm's signature. `workdir`: the folder in which objectives run, else a scratch
    folder. `idle_look_s`: how often an idle worker looks at the queue even if nobody rings. `legacy_grace_s`: see
    Reaper.
    """

    slots: int = 1
    name: str | None = None
    devices: tuple[str, ...] | None = None
    exp_keys: tuple[str, ...] = ()
    lease_s: float = DEFAULT_LEASE_S
    poll_s: float = 1.0
    fresh: bool = False
    max_jobs: int | None = None
    trial_timeout_s: float | None = None
    trial_memory: int | None = None
    patience_s: float = PATIENCE_S
    trust_unsigned: bool = False
    workdir: Path | None = None
    idle_look_s: float = IDLE_LOOK_S
    legacy_grace_s: float | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for a limit that makes no sense (NaN passes every range of click's)."""
        TrialLimits(timeout_s=self.trial_timeout_s, memory=self.trial_memory)


class Supervisor:
    """Runs until it is asked to stop, or the database is away for too long."""

    def __init__(self, store: Store, options: WorkerOptions, limits: StopLimits | None = None) -> None:
        self.store, self.options = store, options
        self.rules = StopRules(limits or StopLimits())
        self.blobs = Blobs(store.database)
        self.codes = BundleCache(store, self.blobs, trust_unsigned=options.trust_unsigned)
        self.shares = FairShare()
        self.host = options.name or socket.gethostname()
        self._devices = None if options.devices is None else share(options.devices, options.slots)
        self.id = f"{self.host}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.leaving = False
        self.failure: str | None = None
        self._draining = threading.Event()
        self._lock, self._door = threading.Lock(), threading.Lock()
        self._held: dict[str, Slot] = {}
        self._lost: set[str] = set()
        self._ends: Counter[JobState | None] = Counter()
        self._began = time.monotonic()
        self._claims_left = options.max_jobs
        self._waiting: list[str | None] = []
        self._waiting_known_until = self._foreign_until = 0.0
        self._next_due_s = options.idle_look_s
        self._deadline: float | None = None
        self._wishes: deque[float] = deque()
        self._ended = threading.Event()
        self.wakeup = Wakeup(store, queue_only=True, poll_s=options.poll_s)
        self._reaper = Reaper(store, legacy_grace_s=options.legacy_grace_s)
        self.slots = [Slot(self, number) for number in range(options.slots)]

    # ---- life --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped; on return no child is left and this worker is unregistered."""
        heart = threading.Thread(target=self._keep_beating, daemon=True, name="heartbeat")
        heart.start()
        for slot in self.slots:
            slot.start()
        try:
            self._wait_for_slots()
        finally:
            self._ended.set()
            self.wakeup.close()
            for slot in self.slots:
                slot.kill_child()
            # With the database away this must not hold up the end; the heartbeat just runs out.
            goodbye = threading.Thread(target=self._unregister, daemon=True)
            goodbye.start()
            goodbye.join(UNREGISTER_S)

    def _unregister(self) -> None:
        with contextlib.suppress(DatabaseError):
            self.store.unregister(self.id)

    def _wait_for_slots(self) -> None:
        while any(slot.is_alive() for slot in self.slots):
            if self._wishes:
                self._obey(self._wishes[0])
                self._wishes.popleft()
            self._heed_the_rules()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                if self.leaving:
                    log.warning("some jobs could not be given back; their leases will expire")
                    return
                self.leave()
            time.sleep(LOOK_S)

    def _heed_the_rules(self) -> None:
        reason = None if self._draining.is_set() else self.rules.reached(bool(self._held))
        if reason is not None:
            log.info("stopping: %s", reason)
            self.drain(math.inf)

    def ask_to_stop(self, grace_s: float) -> None:
        """Ask `run` to drain, or at the second call to leave at once; all that a signal handler may do."""
        self._wishes.append(grace_s)

    def _obey(self, grace_s: float) -> None:
        if self._draining.is_set():
            self.leave()
        else:
            limit = (
                "the time they need"
                if math.isinf(grace_s)
                else f"{grace_s:.0f} s, then they go back to the queue"
            )
            log.info("stopping: running trials have %s", limit)
            self.drain(grace_s)

    def drain(self, grace_s: float) -> None:
        """Claim no more; give back after `grace_s` seconds what still runs. Whoever asks for less time wins."""
        with self._lock:
            asked = time.monotonic() + grace_s
            self._deadline = asked if self._deadline is None else min(asked, self._deadline)
        self._draining.set()
        self.wakeup.close()
        for slot in self.slots:
            slot.tell_draining()

    def leave(self) -> None:
        """Kill the children and give their jobs back now."""
        self.leaving = True
        self._deadline = time.monotonic() + LEAVE_S
        self._draining.set()
        self.wakeup.close()
        for slot in self.slots:
            slot.kill_child()

    def fail(self, reason: str) -> None:
        """A slot cannot go on (the database is away for too long): stop the whole worker."""
        self.failure = reason
        self.leave()

    @property
    def is_draining(self) -> bool:
        """True when no more is claimed."""
        return self._draining.is_set()

    @property
    def is_over(self) -> bool:
        """True when `run` is about to return: what a slot still does is not waited for."""
        return self._ended.is_set()

    @property
    def out_of_time(self) -> bool:
        """True when writes should not be waited for any longer."""
        return self.leaving and self._deadline is not None and time.monotonic() >= self._deadline - 1.0

    def devices_of(self, slot: int) -> tuple[str, ...] | None:
        """The GPUs of a slot; None: whatever the environment says."""
        return None if self._devices is None else self._devices[slot]

    # ---- claiming ----------------------------------------------------------------------------------

    def next_claim(self, slot: Slot) -> Claim | None:
        """Wait for a job for this slot and claim it; None when the worker stops.

        One idle slot at a time waits for news, at the door; the next takes its place when it has found a job.
        """
        seen = self.wakeup.generation
        claim = self._look(slot)
        if claim is not None:
            return claim
        with self._door:
            while claim is None and not self._claims_no_more():
                self.wakeup.wait(seen, self._next_due_s)
                seen = self.wakeup.generation
                claim = self._look(slot)
        if claim is not None:
            self.wakeup.found()
        return claim

    def _look(self, slot: Slot) -> Claim | None:
        """Claim a job if there is one now."""
        self._heed_the_rules()
        if self._claims_no_more():
            return None
        try:
            if full := self._patiently(lambda: self.rules.full(self.store.count_all)):
                log.info("stopping: %s", full)
                self.drain(math.inf)
                return None
            claim = self._patiently(lambda: self._try_to_claim(slot))
        except (DatabaseUnavailable, OutcomeUnknown):
            if self._draining.is_set():
                return None  # The other slots' trials have their time to finish all the same.
            raise
        if self.codes.has_news():
            self._attempt(self._beat)
        if self._claims_left == 0:
            self.wakeup.notify()  # The slots that wait have nothing to wait for.
        return claim

    def _claims_no_more(self) -> bool:
        return self._draining.is_set() or bool(self._wishes) or self._claims_left == 0

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, patience_s=self.options.patience_s, stop=self._draining.is_set)

    def rest(self, slot: Slot, seconds: float) -> None:
        """Hold up a slot for a while, and tell the farm of it at once; returns early when the worker stops."""

        def tell() -> None:
            if slot.pause is not None:
                slot.pause["until"] = self.store.now() + timedelta(seconds=seconds)
            self._beat()

        self._attempt(tell)
        self._draining.wait(seconds)
        slot.pause = None
        self._attempt(self._beat)

    def _try_to_claim(self, slot: Slot) -> Claim | None:
        """Claim a job of the experiment whose turn it is.

        Asking what waits costs as much as a claim. A slot does without while, a moment ago, nothing waited
        but jobs of the very experiment whose code it has loaded.
        """
        if slot.loaded and self._waiting == [slot.loaded[0]] and time.monotonic() < self._waiting_known_until:
            claim = self._claim_first(slot, self._waiting)
            if claim is not None:
                return claim
        found = self.store.waiting()
        known_s = math.inf if found.next_s is None else found.next_s + JUST_AFTER_S
        foreign_s = FOREIGN_LOOK_S if time.monotonic() < self._foreign_until else math.inf
        self._next_due_s = min(self.options.idle_look_s, known_s, foreign_s)
        named = [key for key in found.exp_keys if key is None or isinstance(key, str)]
        waiting = [key for key in named if self._may_serve(key)]
        self._waiting, self._waiting_known_until = waiting, time.monotonic() + WAITING_KNOWN_S
        return self._claim_first(slot, waiting)

    def _claim_first(self, slot: Slot, keys: list[str | None]) -> Claim | None:
        """Claim a job of the first of these experiments, in fair order, that still has one."""
        loaded = slot.loaded[0] if slot.loaded else None
        with self._lock:
            order = self.shares.order(keys, loaded=loaded, startup_s=slot.startup_s)
        for key in order:
            if not self._take_turn():
                return None
            claim = self._claim(slot, key)
            if claim is not None:
                return claim
            self._give_turn_back()
        return None

    def _may_serve(self, key: str | None) -> bool:
        return (not self.options.exp_keys or key in self.options.exp_keys) and self.codes.may_serve(key)

    def _claim(self, slot: Slot, key: str | None) -> Claim | None:
        token = new_token()
        sent = False

        def claim() -> Claim | None:
            nonlocal sent
            if sent and (found := self.store.claimed(token)) is not None:
                return found
            sent = True
            owner = f"{self.host}:{os.getpid()}"
            return self.store.claim(
                key, worker=self.id, owner=owner, token=token, lease_s=self.options.lease_s
            )

        claimed = self._patiently(claim)
        if claimed is not None:
            if "bundle" not in claimed.doc:
                self._foreign_until = time.monotonic() + FOREIGN_LOOKS_S
            with self._lock:
                self._held[token] = slot
                self.shares.begin(key)
        return claimed

    def _take_turn(self) -> bool:
        """Take one claim out of `max_jobs`; False when none is left."""
        with self._lock:
            if self._claims_left is None:
                return True
            if self._claims_left == 0:
                return False
            self._claims_left -= 1
            return True

    def _give_turn_back(self) -> None:
        with self._lock:
            if self._claims_left is not None:
                self._claims_left += 1

    def let_go(self, claim: Claim, seconds: float) -> None:
        """Stop renewing the lease of a job that has come to its outcome; it took `seconds` of a slot."""
        with self._lock:
            self.shares.charge(claim.exp_key, seconds)
            self._held.pop(claim.lease.token, None)
            self._lost.discard(claim.lease.token)

    def count(self, outcome: JobState | None) -> None:
        """Count a trial that came to its end here; None: an attempt that did not."""
        with self._lock:
            self._ends[outcome] += 1
        self.rules.ended(outcome)

    def is_lost(self, claim: Claim) -> bool:
        with self._lock:
            return claim.lease.token in self._lost

    # ---- heartbeat ---------------------------------------------------------------------------------

    def _keep_beating(self) -> None:
        """Renew leases and say that we live, until the end; an error is told and the next beat tries again.

        Renewing waits for the database as long as it takes, and nothing else may hold it up for long: after
        an outage it must come before the others' second look at our leases (reaping.py).
        """
        brief = self.options.lease_s / 10
        self._attempt(self._beat, brief)
        interval = min(self.options.lease_s / 3, HEARTBEAT_S)
        while not self._ended.wait(interval * random.uniform(0.9, 1.0)):
            self._attempt(self._renew, math.inf)
            self._attempt(self._beat, brief)
            self._attempt(self._reap, brief)
            self.codes.forget_current()

    def _attempt(self, action: Callable[[], None], patience_s: float = BRIEFLY_S) -> None:
        try:
            patiently(action, patience_s=patience_s, stop=self._ended.is_set)
        except DatabaseError as error:
            log.info("%s", error)
        except Exception:
            # Nothing may end the heartbeat: without it every lease of this host is lost.
            log.exception("the heartbeat met an error of hyperfarm's own, and goes on")

    def _renew(self) -> None:
        with self._lock:
            tokens = list(self._held)
        lost = self.store.renew(tokens, self.options.lease_s)
        with self._lock:
            # A job that came to its outcome meanwhile has no lease any more, and lost nothing.
            mine = {token: self._held[token] for token in lost if token in self._held}
            self._lost |= mine.keys()
        for token, slot in mine.items():
            slot.kill_child(token)

    def _beat(self) -> None:
        fields = {
            "host": self.host,
            "pid": os.getpid(),
            "launch": os.environ.get(LAUNCH),
            "slots": self.options.slots,
            "devices": None if self.options.devices is None else list(self.options.devices),
            "exp_keys": list(self.options.exp_keys) or None,
            "busy": len(self._held),
            "done": self._ends[JobState.DONE],
            "failed": self._ends[JobState.ERROR],
            "cut_off": self._ends[None],
            "uptime_s": time.monotonic() - self._began,
            "draining": self._draining.is_set(),
            "refused": self.codes.refusals(),
            "paused": [pause for slot in self.slots if (pause := slot.pause) is not None],
            "python": platform.python_version(),
            "versions": {"hyperfarm": hyperfarm.__version__, "hyperopt": metadata.version("hyperopt")},
        }
        self.store.heartbeat(self.id, fields)

    def _reap(self) -> None:
        for doc, event in self._reaper.look():
            log.warning("trial %s of %s: its lease expired; %s", doc["tid"], doc["exp_key"], event.value)

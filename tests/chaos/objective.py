"""The objective of the campaign: its loss, and how it behaves, are functions of the point alone.

It is copied to the campaign's folder and run from there; the auditor imports it to compute again what must
have come out. Every execution keeps a journal of its own, in a folder that no fault touches: one write of
one line per event, so that a kill leaves whole lines.
"""

import hashlib
import json
import os
import random
import signal
import time
import uuid
from pathlib import Path

from hyperfarm import hp, trial

JOURNAL = "CHAOS_JOURNAL"
"""The environment variable that names the journal's folder."""
STEPS = 4
space = {"x": hp.uniform("x", -5, 5), "y": hp.uniform("y", -5, 5), "n": hp.quniform("n", 1, 9, 1)}


def loss_of(point):
    """The known answer; its minimum, 0, lies at (1, -2, 5)."""
    return (point["x"] - 1) ** 2 + (point["y"] + 2) ** 2 + 0.1 * (point["n"] - 5) ** 2


def dice_of(point, *more):
    """Random numbers that belong to this point."""
    return random.Random(repr((point["x"], point["y"], point["n"], *more)))


def behaviour(point):
    """How trials of this point end: ok, exit, segfault (both kill the process), raise or nan."""
    kinds = ["ok", "exit", "segfault", "raise", "nan"]
    return dice_of(point, "behaviour").choices(kinds, weights=[86, 3, 3, 4, 4])[0]


def seconds_of(point, attempt):
    """How long the work takes."""
    return dice_of(point, attempt, "seconds").uniform(0.05, 3.0)


class Execution:
    """One execution of the objective, with its journal."""

    def __init__(self, point):
        self.id = uuid.uuid4().hex
        self.point = point
        self.dice = dice_of(point, trial.attempt, "work")
        self.saved = {}
        self.steps, self.chain, resumed = self._resume()
        self.note("begin", pid=os.getpid(), resumed=resumed, steps=self.steps, chain=self.chain)

    def note(self, event, **what):
        # The monotonic clock is one for all processes of a machine, whatever their wall clocks say.
        told = {"event": event, "execution": self.id, "tid": trial.id, "attempt": trial.attempt, **what}
        line = json.dumps({**told, "at": time.monotonic()}) + "\n"
        file = os.open(
            Path(os.environ[JOURNAL], f"{self.id}.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def _resume(self):
        """(steps done, the chain of executions that did them, the checkpoint's SHA-256 or None)."""
        path = trial.resume()
        if path is None:
            return 0, [], None
        data = path.read_bytes()
        state = json.loads(data.partition(b"\n")[0])
        return state["steps"], state["chain"], hashlib.sha256(data).hexdigest()

    def work(self, seconds):
        """Do the steps that are left, with a report and now and then a checkpoint after each."""
        while self.steps < STEPS:
            time.sleep(seconds / STEPS)
            self.steps += 1
            trial.report(loss=loss_of(self.point), step=self.steps, execution=self.id)
            if self.dice.random() < 0.6:
                self.checkpoint()

    def checkpoint(self):
        chain = [*self.chain, [self.id, self.steps]]
        head = json.dumps({"tid": trial.id, "steps": self.steps, "chain": chain}).encode()
        data = head + b"\n" + os.urandom(self.dice.randrange(300_000))
        what = {"sha256": hashlib.sha256(data).hexdigest(), "steps": self.steps, "chain": chain}
        self.note("checkpointing", **what)
        trial.checkpoint(data)
        self.note("checkpointed", **what)
        self.chain = chain

    def save(self):
        """Save a model of 10 kB to 3 MB, now and then twice under the same name."""
        for _ in range(self.dice.choice((1, 1, 2))):
            data = os.urandom(int(10_000 * 300 ** self.dice.random()))
            trial.save("model.bin", data)
            self.saved["model.bin"] = hashlib.sha256(data).hexdigest()

    def result(self):
        """The result; a third carries a binary of its own, some of those too big for a document."""
        loss = float("nan") if behaviour(self.point) == "nan" else loss_of(self.point)
        result = {"loss": loss, "status": "ok", "execution": self.id}
        binary = os.urandom(self.dice.choice((0, 0, 0, 0, 50_000, 1_200_000)))
        if binary:
            result["binary"] = binary
            self.saved["binary"] = hashlib.sha256(binary).hexdigest()
        self.note("end", loss=None if loss != loss else loss, saved=self.saved)
        return result


def objective(point):
    execution = Execution(point)
    kind = behaviour(point)
    execution.work(seconds_of(point, trial.attempt))
    if kind == "exit":
        os._exit(3)
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "raise":
        execution.note("end", loss=None, saved={})
        raise ValueError(f"as this point wants it, in execution {execution.id}")
    execution.save()
    return execution.result()

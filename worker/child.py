"""The process that runs objectives: `python -m hyperfarm.worker.child FD`.

It loads one bundle, then evaluates one job after the other. It knows nothing of MongoDB: all goes through
the socket FD to its supervisor. It dies with its supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import pickle
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from hyperfarm.hyperopt_import import import_hyperopt
from hyperfarm.worker import wire

LOG = logging.getLogger("hyperopt.base")
"""Where hyperopt's own Ctrl logs."""
MAX_REPORT = 100_000
GUARD_EVERY_S = 1.0
TRIES_TO_CLEAN = 10


class Link:
    """Messages of the running trial to the supervisor; safe to use from the objective's own threads."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def send(self, message: wire.Message) -> None:
        with self._lock:
            wire.send(self._channel, message)

    def ask(self, message: wire.Message) -> Any:
        """Send a request and wait for its answer. Raises OSError with the supervisor's reason."""
        with self._lock:
            wire.send(self._channel, message)
            answer = wire.receive(self._channel)
        if answer is None:
            raise OSError("the supervisor is gone")
        if "error" in answer:
            raise OSError(answer["error"])
        return answer.get("value")

    def report(self, values: dict[str, Any]) -> None:
        from hyperfarm.values import to_plain

        plain = to_plain(values, where="report")
        if len(pickle.dumps(plain)) > MAX_REPORT:
            raise ValueError("a report is for a few numbers; store more with trial.save(name, data)")
        self.send({"type": "report", "values": plain})

    def save(self, name: str, path: Path, kind: str) -> None:
        self.ask({"type": "save", "name": name, "path": str(path), "kind": kind})

    def keep_checkpoint(self, path: Path) -> None:
        self.ask({"type": "keep checkpoint", "path": str(path)})

    def last_checkpoint(self) -> Path | None:
        path = self.ask({"type": "last checkpoint"})
        return None if path is None else Path(path)


class Attachments(MutableMapping[str, bytes]):
    """hyperopt's `ctrl.attachments`: kept by the supervisor, stored with the trial."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __setitem__(self, name: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else value
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"attachment {name!r} must be bytes or text, not {type(value).__name__}")
        self._link.ask({"type": "attach", "name": str(name), "data": bytes(data)})

    def __getitem__(self, name: str) -> bytes:
        data = self._link.ask({"type": "attached", "name": str(name)})
        if data is None:
            raise KeyError(name)
        return bytes(data)

    def __delitem__(self, name: str) -> None:
        self._link.ask({"type": "detach", "name": str(name)})

    def __iter__(self) -> Iterator[str]:
        return iter(self._link.ask({"type": "attachments"}))

    def __len__(self) -> int:
        return len(self._link.ask({"type": "attachments"}))


class Ctrl:
    """What hyperopt hands to an objective that asks for it: the part that makes sense inside one trial."""

    debug, info, warn, error = LOG.debug, LOG.info, LOG.warning, LOG.error

    def __init__(self, link: Link, doc: dict[str, Any]) -> None:
        self._link = link
        self._trials: Any = None
        self.current_trial = doc
        self.attachments = Attachments(link)
        self.workdir = os.getcwd()

    @property
    def trials(self) -> Any:
        """hyperopt's Trials of this experiment, as they are now; a copy, read once for each trial."""
        if self._trials is None:
            from hyperopt.base import trials_from_docs

            docs = self._link.ask({"type": "trials"})
            self._trials = trials_from_docs(docs, validate=False, exp_key=self.current_trial["exp_key"])
        return self._trials

    def inject_results(
        self, specs: list[Any], results: list[Any], miscs: list[Any], new_tids: list[int] | None = None
    ) -> list[int]:
        """Add finished trials to this experiment; returns their tids."""
        from hyperfarm.values import to_plain

        if not len(specs) == len(results) == len(miscs):
            raise ValueError("inject_results needs as many specs as results and miscs")
        tids = new_tids or self._link.ask({"type": "new tids", "count": len(specs)})
        sources = [self.current_trial] * len(tids)
        docs = self.trials.source_trial_docs(tids, specs, results, miscs, sources)
        self._link.ask({"type": "inject", "docs": [to_plain(doc) for doc in docs]})
        return list(tids)

    def checkpoint(self, result: dict[str, Any] | None = None) -> None:
        """Store a partial result of this trial."""
        from hyperfarm.values import to_plain

        if result is not None:
            self._link.ask({"type": "checkpoint", "result": to_plain(result)})


class Evaluator:
    """One bundle's objective, ready to be evaluated at any point of its space."""

    def __init__(self, folder: Path) -> None:
        from hyperopt.base import Domain

        from hyperfarm import bundle

        objective = bundle.load(folder)
        self.domain = Domain(objective.fn, objective.space, pass_expr_memo_ctrl=objective.pass_expr_memo_ctrl)

    def __call__(self, misc: dict[str, Any], ctrl: Ctrl) -> Any:
        """Call the objective at the point of `misc`, as hyperopt's `Domain.evaluate` does."""
        from hyperopt import base, pyll

        domain = self.domain
        memo = domain.memo_from_config(base.spec_from_misc(misc))
        base.use_obj_for_literal_in_memo(domain.expr, ctrl, base.Ctrl, memo)
        if domain.pass_expr_memo_ctrl:
            return domain.fn(expr=domain.expr, memo=memo, ctrl=ctrl)
        return domain.fn(pyll.rec_eval(domain.expr, memo=memo, print_node_on_error=False))


class ForeignEvaluator:
    """What a job of hyperopt's own says is to be run (protocols.py)."""

    def __init__(self, folder: Path) -> None:
        from hyperfarm import protocols

        self._function = protocols.worker_function(protocols.saved(folder))

    def __call__(self, misc: dict[str, Any], ctrl: Ctrl) -> Any:
        from hyperopt.base import spec_from_misc

        return self._function(spec_from_misc(misc), ctrl)


def load(folder: Path) -> Evaluator | ForeignEvaluator:
    """Import what a folder of verified code holds."""
    from hyperfarm import protocols

    return ForeignEvaluator(folder) if protocols.is_saved(folder) else Evaluator(folder)


def run_job(evaluate: Evaluator | ForeignEvaluator, job: wire.Message, link: Link) -> wire.Message:
    """Evaluate one job; whatever the objective does, the answer is a message with a result or an error."""
    from hyperfarm import results, trial, values

    notes: list[str] = []
    started = time.monotonic()
    scratch = Path(job["scratch"])
    trial.enter(
        link,
        scratch,
        trial_id=job["doc"]["tid"],
        experiment=job["doc"]["exp_key"],
        attempt_number=job["attempt"],
    )
    try:
        with working_in(job["workdir"]):
            ctrl = Ctrl(link, job["doc"])
            returned = evaluate(job["doc"]["misc"], ctrl)
        result = results.interpret(returned, hyperopt_losses=job["hyperopt_losses"])
        for name, data in (result.pop("attachments", None) or {}).items():
            ctrl.attachments[name] = data
        answer: wire.Message = {"result": values.to_plain(result, note=notes.append)}
    except BaseException as error:  # noqa: BLE001 - an objective may raise anything
        answer = {
            "error": [type(error).__name__, str(error)[:4000]],
            "traceback": _traceback_of(error),
            "disk_full": isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT),
        }
    finally:
        trial.leave()
    for note in notes:
        print(f"hyperfarm: {note}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return {"type": "result", "duration_s": time.monotonic() - started, "notes": notes, **answer}


@contextlib.contextmanager
def working_in(folder: str | None) -> Iterator[None]:
    """Make a folder, if one is named, and be in it during the block."""
    if folder is None:
        yield
        return
    os.makedirs(folder, exist_ok=True)
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _traceback_of(error: BaseException) -> str:
    """The traceback from the objective's own frames on, without those of this file."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))[-60_000:]


def start_guardian() -> int:
    """Fork a tiny process that kills this process group when the supervisor or this process is gone.

    Returns its process id.

    A process and not a thread: it does its work also while the objective holds the GIL or has crashed, and
    takes along what the objective has started. It is in a group of its own, so that it can then remove the
    scratch folder, which a killed supervisor left behind.
    """
    lifeline = int(os.environ.pop("HYPERFARM_LIFELINE"))
    scratch = os.environ.pop("HYPERFARM_SCRATCH")
    guarded = os.getpid()
    guardian = os.fork()
    if guardian != 0:
        os.close(lifeline)
        return guardian
    os.setpgid(0, 0)
    # Nothing may stay open here, or the supervisor would not notice the end of the child.
    os.closerange(0, lifeline)
    os.closerange(lifeline + 1, lifeline + 256)
    # Nothing is ever written to the lifeline: it is readable when its other end is closed.
    while os.getppid() == guarded and not select.select([lifeline], [], [], GUARD_EVERY_S)[0]:
        continue
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(guarded, signal.SIGKILL)
    kill_marked(f"HYPERFARM_CHILD={scratch}".encode())
    select.select([lifeline], [], [])  # While the supervisor lives, the folder is its own.
    for _ in range(TRIES_TO_CLEAN):  # A process that is being killed may still put a file there.
        shutil.rmtree(scratch, ignore_errors=True)
        if not os.path.exists(scratch):
            break
        time.sleep(GUARD_EVERY_S)
    os._exit(0)


def kill_marked(mark: bytes) -> None:
    """Kill what has left the process group: all processes but this one with `mark` in their environment."""
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        with contextlib.suppress(OSError, ValueError):
            pid = int(name)
            if pid != os.getpid() and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    guardian = start_guardian()  # First of all: a fork wants a process without threads.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's business.
    faulthandler.enable()  # After a crash the trial's log says where in the objective it was.
    channel = socket.socket(fileno=int(sys.argv[1]))
    sys.argv[:] = ["hyperfarm"]
    link = Link(channel)
    order = wire.receive(channel)
    if order is None:
        return
    import_hyperopt()
    try:
        evaluate = load(Path(order["folder"]))
    except Exception as error:  # noqa: BLE001 - user code is imported here
        missing = error.__cause__ if isinstance(error.__cause__, ModuleNotFoundError) else error
        link.send(
            {
                "type": "unusable",
                "error": [type(error).__name__, str(error)],
                "traceback": _traceback_of(error),
                "missing_module": getattr(missing, "name", None)
                if isinstance(missing, ModuleNotFoundError)
                else None,
            }
        )
        return
    link.send({"type": "ready", "guardian": guardian})
    while (order := wire.receive(channel)) is not None:
        link.send(run_job(evaluate, order, link))


if __name__ == "__main__":
    main()

"""`hyperfarm-mongo-worker`: hyperopt-mongo-worker's options, signals and exit codes, on the farm's worker."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperfarm import settings
from hyperfarm.errors import HyperfarmError, UsageError
from hyperfarm.jobs import JobState
from hyperfarm.mongo_jobs import MongoJobs, as_mongo_str
from hyperfarm.store import Store
from hyperfarm.worker.mongo_worker import MongoWorker, ReserveTimeout
from hyperfarm.worker.stop_rules import StopLimits, StopRules
from hyperfarm.worker.supervisor import Supervisor, WorkerOptions

log = logging.getLogger("hyperfarm.worker")
EXIT_FAILED, EXIT_ERROR = 1, 2
DEFAULT_MONGO = "localhost/hyperopt"


class Shutdown(Exception):
    """A signal asks the worker to stop now."""


class WaitQuit(Exception):
    """A signal asks the worker to stop after the running job."""


class _Now(BaseException):
    """Raised by a signal in the middle of an objective, which must not take it for an error of its own."""


def main_worker() -> int | None:
    """Parse the command line and serve; return the exit code."""
    options = _parser().parse_args()
    return main_worker_helper(options, [])


def main_worker_helper(options: Any, args: Any) -> int | None:
    """Serve until one of the limits in `options` is reached; return the exit code (None is 0).

    `options` has hyperopt's attributes: mongo, exp_key, poll_interval, workdir, reserve_timeout, last_job_timeout,
    max_consecutive_failures, max_jobs, max_jobs_in_db, use_subprocesses; and trust_unsigned. What is missing has
    its default. Raises ReserveTimeout when the only job (`max_jobs=1`) does not come in time.
    """
    options = argparse.Namespace(**{**vars(_parser().parse_args([])), **vars(options)})
    most = _number(options.max_jobs, "--max-jobs", least=1)
    limits = StopLimits(
        reserve_timeout_s=_number(options.reserve_timeout, "--reserve-timeout"),
        last_job_timeout_s=_number(options.last_job_timeout, "--last-job-timeout"),
        # With a single job there is nothing to try again.
        max_failures=1
        if most == 1
        else _number(options.max_consecutive_failures, "--max-consecutive-failures"),
        max_jobs_in_db=_whole(_number(options.max_jobs_in_db, "--max-jobs-in-db")),
    )
    options.poll_interval = _number(options.poll_interval, "--poll-interval")
    serve = _supervise if options.use_subprocesses else _serve_in_process
    return serve(options, limits, _whole(most))


def main() -> None:
    """The command. An error of ours is one sentence and exit code 2."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    logging.getLogger("pymongo").setLevel(logging.CRITICAL)
    try:
        sys.exit(main_worker())
    except ReserveTimeout as error:
        print(f"hyperfarm-mongo-worker: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except HyperfarmError as error:
        if os.environ.get("HYPERFARM_DEBUG"):
            raise
        print(f"hyperfarm-mongo-worker: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)


# ---- one process per job ----------------------------------------------------------------------------


def _supervise(options: Any, limits: StopLimits, most: int | None) -> int | None:
    with contextlib.closing(Store.open(_address(options))) as store:
        served = WorkerOptions(
            exp_keys=() if options.exp_key is None else (str(options.exp_key),),
            fresh=True,
            max_jobs=most,
            trust_unsigned=options.trust_unsigned,
            workdir=None if options.workdir is None else Path(options.workdir),
            idle_look_s=max(0.05, options.poll_interval),
        )
        supervisor = Supervisor(store, served, limits)
        _on_signals(stop=lambda: supervisor.ask_to_stop(0), finish=lambda: supervisor.ask_to_stop(math.inf))
        supervisor.run()
        if supervisor.failure is not None:
            raise HyperfarmError(supervisor.failure)
        return _outcome_of_one(supervisor.rules) if most == 1 else None


def _outcome_of_one(rules: StopRules) -> int | None:
    """The exit code when there was to be one job. Raises ReserveTimeout when it did not come."""
    if rules.waited_in_vain:
        raise ReserveTimeout(f"no job came within {rules.limits.reserve_timeout_s:g} s")
    return EXIT_FAILED if rules.failures else None


# ---- all jobs in this process -----------------------------------------------------------------------


def _serve_in_process(options: Any, limits: StopLimits, most: int | None) -> int | None:
    rules, wishes = StopRules(limits), threading.Event()
    jobs = MongoJobs.new_from_connection_str(_address(options))
    worker = MongoWorker(
        jobs,
        options.poll_interval,
        workdir=options.workdir,
        exp_key=options.exp_key,
        trust_unsigned=options.trust_unsigned,
    )
    _on_signals(stop=_shut_down, finish=wishes.set)
    done = 0
    try:
        while most is None or done < most:
            reason = rules.reached(busy=False) or rules.full(jobs.__len__)
            if reason is not None or wishes.is_set():
                log.info("stopping: %s", reason or "asked to, after the running job")
                break
            _run_one(worker, rules, wishes)
            done += 1
    except _Now:
        return 0
    return _outcome_of_one(rules) if most == 1 else None


def _run_one(worker: MongoWorker, rules: StopRules, wishes: threading.Event) -> None:
    timeout_s = rules.limits.reserve_timeout_s
    try:
        worker.run_one(reserve_timeout=None if math.isinf(timeout_s) else timeout_s, stop=wishes.is_set)
    except ReserveTimeout as error:
        log.info("%s", error)
        rules.ended(None, in_vain=True)
    except Exception:
        log.exception("the job failed")
        rules.ended(None)
    else:
        rules.ended(JobState.DONE)


def _shut_down() -> None:
    raise _Now


# ---- options and signals ----------------------------------------------------------------------------


def _on_signals(stop: Callable[[], None], finish: Callable[[], None]) -> None:
    """SIGTERM, SIGINT and SIGHUP stop at once, SIGUSR1 after the running job; only the main thread can listen."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop())
    asked = threading.Event()

    def once(*_: object) -> None:
        if not asked.is_set():
            asked.set()
            finish()

    signal.signal(signal.SIGUSR1, once)


def _address(options: Any) -> str:
    """What --mongo means: host[:port]/db; without it, what hyperfarm's settings say, or hyperopt's default."""
    text = options.mongo or settings.mongo_url() or DEFAULT_MONGO
    return as_mongo_str(str(text))


def _number(given: Any, option: str, least: float = 0) -> float:
    """A limit as a number; None, and hyperopt's sys.maxsize, are no limit. Raises UsageError."""
    if given is None or given == sys.maxsize:
        return math.inf
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not value >= least:
        raise UsageError(f"{option} is {given}; it must be a number, {least:g} or more")
    return value


def _whole(value: float) -> int | None:
    return None if math.isinf(value) else int(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description="Run the jobs of a hyperopt or hyperfarm search: hyperopt-mongo-worker's options on the farm.",
        epilog="example: hyperfarm-mongo-worker --mongo=db.example.org:27017/jobs --exp-key=mnist",
    )
    add = parser.add_argument
    add("--exp-key", metavar="str", help="serve this experiment only")
    add("--last-job-timeout", metavar="T", help="claim no job after T seconds")
    add(
        "--max-consecutive-failures",
        metavar="N",
        default=4,
        help="stop after N failures in a row (default: 4)",
    )
    add("--max-jobs", metavar="N", help="stop after N jobs (default: no limit)")
    add("--mongo", help=f"HOST[:PORT]/DB, or any address of a MongoDB (default: {DEFAULT_MONGO})")
    add("--poll-interval", metavar="N", default=5, help="look at the queue every N seconds (default: 5)")
    add("--reserve-timeout", metavar="T", default=120.0,
        help="T seconds without a job count as a failure (default: 120)")  # fmt: skip
    add("--workdir", metavar="DIR", help="where objectives run (default: what the job says)")
    add("--no-subprocesses", dest="use_subprocesses", action="store_false",
        help="run objectives in this very process: big data stays in memory, and so does what leaks")  # fmt: skip
    add("--max-jobs-in-db", metavar="N", help="stop when the database holds N jobs")
    add("--trust-unsigned", action="store_true",
        help="run jobs without the farm's signature: code of whoever can write to the database")  # fmt: skip
    return parser

"""`hyperfarm worker`: run jobs on this host."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import click

from hyperfarm.cli_options import mongo_option, open_store, patience_option, trial_limit_options
from hyperfarm.errors import UsageError
from hyperfarm.jobs import DEFAULT_LEASE_S
from hyperfarm.worker.devices import automatic_slots, present

if TYPE_CHECKING:
    from hyperfarm.worker.supervisor import Supervisor

MOST_SLOTS = 1024
INTERRUPT_GRACE_S = 1.0
"""After Ctrl-C running trials may finish within this time; then their jobs go back to the queue."""


def _install_shim(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from hyperfarm.worker.shim import install_shim

        click.echo(f"{install_shim()} is hyperfarm's now")
        context.exit()


@click.command()
@mongo_option
@click.option("--exp-key", "exp_keys", multiple=True, help="Serve this experiment only (may be repeated).")
@click.option("--slots", metavar="N|auto", default="1", show_default=True,
              help="How many trials to run at once, each in its own process; auto: one per GPU or core.")  # fmt: skip
@click.option("--devices", metavar="LIST", default="auto", show_default=True,
              help="GPUs that the slots share out among them: auto (all), none, or such as 0,1.")  # fmt: skip
@click.option("--name", metavar="TEXT", help="What this host is called in the farm (default: its host name).")
@click.option("--lease", "lease_s", type=click.FloatRange(1), default=DEFAULT_LEASE_S, show_default=True,
              help="Seconds after which a worker that fell silent loses its trials.")  # fmt: skip
@click.option("--grace", "grace_s", type=click.FloatRange(0), default=60.0, show_default=True,
              help="Seconds that running trials get to finish after SIGTERM.")  # fmt: skip
@trial_limit_options
@patience_option
@click.option("--fresh", is_flag=True, help="Start a new process for every trial.")
@click.option("--max-jobs", type=click.IntRange(1), default=None, help="Leave after this many trials.")
@click.option("--trust-unsigned", is_flag=True,
              help="Run what hyperopt's own programs queue: code of whoever can write to the database.")  # fmt: skip
@click.option("--legacy-grace", "legacy_grace_s", type=click.FloatRange(0, min_open=True), default=None,
              help="Seconds after which a silent worker of hyperopt's own loses its trial.")  # fmt: skip
@click.option("--install-shim", is_flag=True, is_eager=True, expose_value=False, callback=_install_shim,
              help="Put this worker in the place of the command hyperopt-mongo-worker, and leave.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="Print warnings only.")
@click.option("--lifeline", is_flag=True, hidden=True, help="Drain when standard input is closed.")
def worker(
    mongo: str | None,
    exp_keys: tuple[str, ...],
    slots: str,
    devices: str,
    name: str | None,
    lease_s: float,
    grace_s: float,
    trial_timeout_s: float | None,
    trial_memory: int | None,
    patience_s: float,
    fresh: bool,
    max_jobs: int | None,
    trust_unsigned: bool,
    legacy_grace_s: float | None,
    quiet: bool,
    lifeline: bool,
) -> None:
    """Run trials on this host until stopped.

    Without --exp-key it serves every experiment of the database, fairly. SIGTERM lets running trials
    finish for --grace seconds; Ctrl-C ends the worker within seconds; what was not finished goes back to
    the queue and runs elsewhere.

    \b
    Example:
      hyperfarm worker --mongo mongodb://db.example.org/jobs --slots 4
    """
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.getLogger("pymongo").setLevel(logging.CRITICAL)
    with open_store(mongo) as store:
        from hyperfarm.errors import DatabaseUnavailable
        from hyperfarm.worker.supervisor import Supervisor, WorkerOptions

        gpus = parse_devices(devices)
        options = WorkerOptions(
            slots=parse_slots(slots, gpus or ()),
            name=name,
            devices=gpus,
            exp_keys=exp_keys,
            lease_s=lease_s,
            fresh=fresh,
            max_jobs=max_jobs,
            trial_timeout_s=trial_timeout_s,
            trial_memory=trial_memory,
            patience_s=patience_s,
            trust_unsigned=trust_unsigned,
            legacy_grace_s=legacy_grace_s,
        )
        supervisor = Supervisor(store, options)
        stop_on_signals(supervisor, grace_s)
        if lifeline:
            watch_lifeline(lambda: supervisor.ask_to_stop(grace_s))
        logging.info("worker %s: %d slots", supervisor.id, options.slots)
        supervisor.run()
        if supervisor.failure is not None:
            raise DatabaseUnavailable(supervisor.failure)
        logging.info("worker %s has stopped; nothing is left running", supervisor.id)


def parse_devices(text: str) -> tuple[str, ...] | None:
    """Read --devices; None when there is nothing to share out. Raises UsageError."""
    if text == "none":
        return ()
    if text == "auto":
        return present() or None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--devices {text} is not understood: write auto, none, or GPUs such as 0,1")
    return names


def parse_slots(text: str, devices: tuple[str, ...]) -> int:
    """Read --slots. Raises UsageError."""
    if text == "auto":
        return automatic_slots(devices)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_SLOTS):
        raise UsageError(f"--slots {text} is neither auto nor a number from 1 to {MOST_SLOTS}")
    return int(text)


def stop_on_signals(supervisor: Supervisor, grace_s: float) -> None:
    """The first SIGTERM or SIGINT drains, the second leaves at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        supervisor.ask_to_stop(grace_s if number == signal.SIGTERM else INTERRUPT_GRACE_S)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def watch_lifeline(gone: Callable[[], None]) -> None:
    """Call `gone` when standard input ends: the process that started this one is no more."""

    def wait() -> None:
        while os.read(0, 1024):
            continue
        gone()

    threading.Thread(target=wait, daemon=True, name="lifeline").start()

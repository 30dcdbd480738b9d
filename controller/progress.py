"""The search on the terminal: a live bar where there is one, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hyperfarm.controller.experiment import UNLIMITED
from hyperfarm.controller.search import Status

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY_S = 5.0
REMIND_EVERY_S = 15.0


def describe(status: Status) -> str:
    """The counts and the best loss in one line."""
    budget = "" if status.budget == UNLIMITED else f"/{status.budget}"
    parts = [f"{status.done + status.failed}{budget} done", f"{status.running} running"]
    if status.failed:
        parts.append(f"{status.failed} failed")
    best = "-" if status.best is None else f"{status.best['result']['loss']:.6g}"
    parts.append(f"best {best}")
    if status.rate >= 0.01:
        parts.append(f"{status.rate * 60:.3g}/min" if status.rate < 1 else f"{status.rate:.3g}/s")
    if len(status.workers) != 1:
        parts.append(f"{len(status.workers)} workers")
    return ", ".join(parts)


def time_left(status: Status) -> str:
    """An estimate of the time until the budget is used up, from the rate of late."""
    left = status.budget - status.done - status.failed
    if status.budget == UNLIMITED or status.rate <= 0:
        return "time left ?"
    return f"{_clock(left / status.rate)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Shows a search on standard error; a context manager. `waiting_hint` is shown while no worker lives."""

    def __init__(self, exp_key: str, waiting_hint: str) -> None:
        self._exp_key, self._hint = exp_key, waiting_hint
        self._bar: Bar | None = None
        self._task: Any = None
        self._complete = False
        self._next_line = 0.0
        self._next_reminder = time.monotonic() + 3.0
        self._told: set[str] = set()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("[bold]{task.fields[name]}"),
                BarColumn(bar_width=12),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                transient=False,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, name=self._exp_key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, status: Status) -> None:
        """Show `status`; cheap enough to be called at every step of the search."""
        now = time.monotonic()
        finished = status.done + status.failed
        text = f"{describe(status)}, {time_left(status)}"
        if self._bar is not None:
            total = None if status.budget == UNLIMITED else status.budget
            self._bar.update(self._task, completed=finished, total=total, description=text)
        elif not self._complete and (now >= self._next_line or finished >= status.budget):
            self._complete = finished >= status.budget
            self._next_line = now + LINE_EVERY_S
            self.say(f"{self._exp_key}: {text}")
        for refusal in status.refusals:
            self.say_once(refusal)
        if not status.workers and finished < status.budget and now >= self._next_reminder:
            self._next_reminder = now + REMIND_EVERY_S
            self.say(self._hint)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def say_once(self, text: str) -> None:
        """Print a line, but never the same twice."""
        if text not in self._told:
            self._told.add(text)
            self.say(text)

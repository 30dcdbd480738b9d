"""What the documents in `workers` tell, in words for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any


def name_of(worker: Mapping[str, Any]) -> str:
    """A worker as a person finds it again: its host and its process."""
    return f"{worker.get('host', '?')} (process {worker.get('pid', '?')})"


def silence_s(worker: Mapping[str, Any], now: datetime) -> float:
    """Seconds since the worker's last heartbeat; `now` is the database's clock."""
    beat = worker.get("heartbeat")
    return max(0.0, (now - beat).total_seconds()) if isinstance(beat, datetime) else float("inf")


def serves(worker: Mapping[str, Any], exp_key: str | None) -> bool:
    """True when the worker was started for this experiment, or for all."""
    return not worker.get("exp_keys") or exp_key in worker["exp_keys"]


def refuses(worker: Mapping[str, Any], exp_key: str | None) -> bool:
    """True when the worker was started for this experiment, or for all, and will not run its code."""
    refused = any(one.get("exp_key") == exp_key for one in worker.get("refused") or ())
    return refused and serves(worker, exp_key)


def pauses(workers: Iterable[Mapping[str, Any]], untold: str | None = None) -> list[str]:
    """One text per slot that pauses since its process keeps crashing, beginning with its host.

    `untold` is the experiment that the reader is looking at anyway.
    """
    return [_pause(worker, one, untold) for worker in workers for one in worker.get("paused") or ()]


def _pause(worker: Mapping[str, Any], pause: Mapping[str, Any], untold: str | None) -> str:
    crashes = pause.get("crashes", 0)
    many = f"{crashes} crashes in a row" if crashes != 1 else "a crash"
    text = (
        f"{worker.get('host', '?')}: slot {pause.get('slot', '?')} after {many} ({pause.get('reason', '?')})"
    )
    seconds = pause.get("seconds")
    if seconds is not None:
        text += f", for {seconds:.0f} s" if seconds < 120 else f", for {seconds / 60:.0f} min"
    key = pause.get("exp_key")
    return text + (f", last with {key}" if key not in (None, untold) else "")


def listed(texts: Iterable[str], limit: int = 5) -> str:
    """The texts in one line, no more than `limit` of them."""
    every = list(texts)
    more = [f"and {len(every) - limit} more"] if len(every) > limit else []
    return "; ".join([*every[:limit], *more])

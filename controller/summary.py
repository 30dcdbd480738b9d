"""What a search prints when it ends: what came out, and what to do next."""

from __future__ import annotations

from typing import Any

import click

from hyperfarm.controller.plan import Reason
from hyperfarm.controller.session import Ended
from hyperfarm.jobs import JobState, is_failed, is_ok
from hyperfarm.trials import MongoTrials

STOPPED_BY = {
    Reason.EARLY_STOP: "raise --no-progress (early_stop_fn), or leave it out",
    Reason.THRESHOLD: "lower --loss-threshold, or leave it out",
}


def print_summary(trials: MongoTrials, ended: Ended, *, again: str, named: str) -> None:
    """Print the outcome on standard output.

    `again` is the command that carries the search on; `named` is what commands need to find its database.
    """
    key = ended.experiment.exp_key
    jobs = trials.local.jobs()
    ok, failed = sum(map(is_ok, jobs)), [doc for doc in jobs if is_failed(doc)]
    running = sum(doc["state"] == JobState.RUNNING for doc in jobs)
    counts = f"{ok} ok, {len(failed)} failed" + (f", {running} still running" if running else "")
    click.echo(f"{key}: {counts} after {ended.elapsed_s:.1f} s ({ended.reason.value})")
    best = trials.local.best()
    if best is not None:
        values = {label: vals[0] for label, vals in best["misc"]["vals"].items() if vals}
        point = ", ".join(f"{label}={_short(value)}" for label, value in sorted(values.items()))
        click.echo(f"best loss {best['result']['loss']:.6g} (trial {best['tid']}): {point}")
    elif failed:
        error = failed[0].get("error")
        why = ": ".join(error) if error else "its result has status 'fail'"
        click.echo(f"no trial has succeeded; trial {failed[0]['tid']}: {why}")
    if ended.reason in STOPPED_BY:
        click.echo(f"to carry it on, {STOPPED_BY[ended.reason]}:\n  {again}")
    elif ended.reason not in (Reason.COMPLETE, Reason.EXHAUSTED):
        click.echo(f"carry it on with the same command:\n  {again}")
    click.echo("next:")
    click.echo(f"  hyperfarm show {key}{named}")
    if best is not None:
        click.echo(f"  hyperfarm plot {key} --kind 3d{named}")
        if any(entry["kind"] == "model" for entry in best.get("artifacts", ())):
            click.echo(f"  hyperfarm pull {key} -o best.keras{named}")
    elif failed:
        click.echo(f"  hyperfarm logs {key} {failed[0]['tid']}{named}")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

"""Balancing the books: what the database says about every trial, against the point and against the journal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hyperfarm.jobs import KEPT_HISTORY, JobDoc, JobState
from hyperfarm.store import Store
from tests.chaos import objective
from tests.chaos.journal import Execution, Journal

CUT_OFF = ("requeue", "give up")
NO_SPACE = re.compile(r"14031|OutOfDiskSpace|No space left|Errno 28\b|File too large|Errno 27\b")
DEADLY = {"exit": "exit code 3", "segfault": "SIGSEGV"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line of the books that does not balance. `kind` is a word, `detail` for whoever looks into it."""

    kind: str
    text: str
    detail: Any = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What was agreed. `lossy`: a mongod that was killed may have lost what it had confirmed (a standalone)."""

    exp_key: str
    max_evals: int
    lossy: bool = False
    disks_filled: bool = False


def balance(store: Store, journal: Journal, terms: Terms) -> list[Finding]:
    """Return everything about the trials that is not as it has to be; the blobs are `blob_books`' part."""
    jobs = store.find_jobs(terms.exp_key)
    found = [Finding(kind="journal", text=f"unreadable: {torn}") for torn in journal.torn]
    found += check_budget(jobs, terms)
    found += check_executions(jobs, journal)
    for job in jobs:
        if job["state"] in (JobState.DONE, JobState.ERROR):
            found += check_attempts(job, journal, terms)
            found += check_outcome(job, journal, terms)
            found += check_reports(store, job)
    return found


def brief(job: JobDoc) -> dict[str, Any]:
    """The fields of a job that tell its story, for the detail of a finding."""
    names = ("tid", "slot", "state", "owner", "attempt", "lease", "accepted", "error", "history", "version")
    shown = {name: str(job[name])[:1500] for name in names if job.get(name) is not None}
    return shown | {"point": point_of(job), "behaviour": objective.behaviour(point_of(job))}


def point_of(job: JobDoc) -> dict[str, float]:
    return {label: values[0] for label, values in job["misc"]["vals"].items()}


def check_budget(jobs: Sequence[JobDoc], terms: Terms) -> Iterator[Finding]:
    """Exactly max_evals finished trials in the slots 0 to max_evals - 1, and nothing that waits or runs."""
    finished = [job for job in jobs if job["state"] in (JobState.DONE, JobState.ERROR) and "slot" in job]
    if len(finished) != terms.max_evals:
        yield Finding(kind="budget", text=f"{len(finished)} finished trials, not {terms.max_evals}")
    slots = Counter(job["slot"] for job in finished)
    missing = sorted(set(range(terms.max_evals)) - set(slots))
    wrong = sorted(slot for slot, count in slots.items() if count > 1 or not 0 <= slot < terms.max_evals)
    if missing or wrong:
        yield Finding(kind="slots", text=f"slots without a finished trial: {missing}; not once: {wrong}")
    for job in jobs:
        if job["state"] not in (JobState.DONE, JobState.ERROR) or "slot" not in job:
            label = JobState(job["state"]).label
            yield Finding(kind="stuck", text=f"trial {job['tid']} is {label}", detail=brief(job))
    for tid, count in Counter(job["tid"] for job in jobs).items():
        if count > 1:
            both = [brief(job) for job in jobs if job["tid"] == tid]
            yield Finding(kind="tids", text=f"{count} trials have the number {tid}", detail=both)


def check_executions(jobs: Sequence[JobDoc], journal: Journal) -> Iterator[Finding]:
    """Every execution was accepted once at the most."""
    accepted = Counter(job["result"].get("execution") for job in jobs if job["state"] == JobState.DONE)
    for execution, count in accepted.items():
        if execution is not None and count > 1:
            yield Finding(kind="accepted", text=f"execution {execution} was accepted {count} times")
    known = {job["tid"] for job in jobs}
    for tid in sorted({one.tid for one in journal.executions.values()} - known):
        yield Finding(kind="vanished", text=f"trial {tid} was executed, and is not in the database")


def check_attempts(job: JobDoc, journal: Journal, terms: Terms) -> Iterator[Finding]:
    """The history tells of every attempt before the last, and there were no more executions than claims."""
    history, attempt = job.get("history", []), job["attempt"]
    if not 1 <= attempt <= job["max_attempts"]:
        yield Finding(kind="attempts", text=f"trial {job['tid']} had {attempt} attempts", detail=brief(job))
    for entry in history:
        if "an error in the worker" in entry["reason"]:
            text = f"trial {job['tid']} lost attempt {entry['attempt']}: {entry['reason']}"
            yield Finding(kind="burnt", text=text, detail=brief(job))
    if len(history) >= KEPT_HISTORY:
        return
    numbers = [entry["attempt"] for entry in history if entry["event"] in CUT_OFF]
    last = 1 if "accepted" in job else 0
    if numbers != list(range(1, len(numbers) + 1)) or attempt != len(numbers) + last:
        text = f"trial {job['tid']}: attempt {attempt}, but its history tells of {numbers}"
        yield Finding(kind="history", text=text, detail=brief(job))
    claims = len(history) + last
    executions = journal.of(job["tid"])
    if len(executions) > claims and not terms.lossy:
        text = f"trial {job['tid']} was executed {len(executions)} times in {claims} claims"
        yield Finding(kind="executions", text=text, detail=[one.begin for one in executions])
    for entry in history:
        began = any(one.attempt == entry["attempt"] for one in executions)
        if any(sign in entry["reason"] for sign in DEADLY.values()) and not began:
            text = f"trial {job['tid']}: attempt {entry['attempt']} died by its objective, which never began"
            yield Finding(kind="executions", text=text, detail=brief(job))


def check_outcome(job: JobDoc, journal: Journal, terms: Terms) -> Iterator[Finding]:
    """The outcome is the one that the point has, and comes from an execution that ended."""
    kind = objective.behaviour(point_of(job))
    if job["state"] == JobState.DONE:
        if kind != "ok":
            yield Finding(kind="outcome", text=f"trial {job['tid']} cannot succeed", detail=brief(job))
        yield from check_result(job, journal)
        return
    name, text = [*(job.get("error") or ("?", "?"))][:2]
    if name == "AttemptsExhausted":
        yield from check_exhausted(job, kind)
    elif "accepted" not in job:
        yield Finding(kind="accepted", text=f"trial {job['tid']}: nobody's error", detail=brief(job))
    elif NO_SPACE.search(text) and terms.disks_filled:
        return  # A full disk may cost a trial: saving raised in the objective.
    elif kind == "nan":
        if name != "InvalidResult":
            yield Finding(kind="outcome", text=f"trial {job['tid']}: {name} for NaN", detail=brief(job))
    elif kind == "raise" and name == "ValueError":
        execution = journal.executions.get(text.rpartition(" ")[2])
        if execution is None or execution.tid != job["tid"] or execution.end is None:
            yield Finding(kind="journal", text=f"trial {job['tid']}: unknown execution", detail=brief(job))
    else:
        yield Finding(kind="unjust", text=f"trial {job['tid']} ({kind}): {name}: {text}", detail=brief(job))


def check_result(job: JobDoc, journal: Journal) -> Iterator[Finding]:
    """A stored result is that of an execution of this trial which ended with this loss, the right one."""
    result, tid = job["result"], job["tid"]
    if not {"token", "worker"} <= (job.get("accepted") or {}).keys():
        yield Finding(kind="accepted", text=f"trial {tid} was accepted from nobody", detail=brief(job))
    expected = objective.loss_of(point_of(job))
    if result.get("loss") != expected:
        text = f"trial {tid}: loss {result.get('loss')} is stored, its point has {expected}"
        yield Finding(kind="loss", text=text, detail=brief(job))
    execution = journal.executions.get(str(result.get("execution")))
    if execution is None or execution.tid != tid or execution.end is None:
        text = f"trial {tid}: its result's execution {result.get('execution')} is no finished one of it"
        yield Finding(kind="journal", text=text, detail=brief(job))
    elif execution.end["loss"] != result.get("loss") or execution.attempt != job["attempt"]:
        text = f"trial {tid}: its execution ended as attempt {execution.attempt} with {execution.end['loss']}"
        yield Finding(kind="journal", text=text, detail=brief(job))


def check_exhausted(job: JobDoc, kind: str) -> Iterator[Finding]:
    """All attempts were cut off, each by something outside the objective or by its deadly point."""
    history, tid = job.get("history", []), job["tid"]
    cut = [entry for entry in history if entry["event"] in CUT_OFF]
    if len(cut) != job["max_attempts"] and len(history) < KEPT_HISTORY:
        text = f"trial {tid} was given up after {len(cut)} of {job['max_attempts']} attempts"
        yield Finding(kind="attempts", text=text, detail=brief(job))
    for entry in cut:
        if kind not in DEADLY and any(sign in entry["reason"] for sign in DEADLY.values()):
            yield Finding(kind="unjust", text=f"trial {tid} ({kind}) died by itself", detail=brief(job))


def check_reports(store: Store, job: JobDoc) -> Iterator[Finding]:
    """Nothing is visible that another execution than the accepted one has reported."""
    seen = {report.get("execution") for report in store.reports(job)}
    mine = {job["result"].get("execution")} if job["state"] == JobState.DONE else seen
    if seen - mine or len(seen) > 1:
        text = f"trial {job['tid']} shows reports of executions {sorted(map(str, seen))}"
        yield Finding(kind="reports", text=text, detail=brief(job))


def check_resumed(journal: Journal, terms: Terms) -> list[Finding]:
    """Every execution went on from the last checkpoint that an earlier one of the trial had committed."""
    found = []
    for tid in sorted({one.tid for one in journal.executions.values()}):
        executions = journal.of(tid)
        for execution in executions:
            text = wrongly_resumed(execution, executions, terms)
            if text is not None:
                told = [[one.begin, *one.checkpoints, one.end] for one in executions]
                found.append(Finding(kind="checkpoint", text=f"trial {tid}: {text}", detail=told))
    return found


def wrongly_resumed(execution: Execution, all_of_trial: Sequence[Execution], terms: Terms) -> str | None:
    """Say what is wrong with the checkpoint that an execution got; None when all is well."""
    began, resumed = execution.begin["at"], execution.begin["resumed"]
    # Not those of later attempts: a supervisor that was stopped may begin when another has long finished.
    before = [one for one in all_of_trial if one.attempt <= execution.attempt]
    lines = [line for one in before for line in one.checkpoints if line["at"] < began]
    lines.sort(key=lambda line: line["at"])
    sent = [line for line in lines if line["event"] == "checkpointing"]
    sure = [line for line in lines if line["event"] == "checkpointed"]
    if resumed is None:
        return "it resumed nothing, though a checkpoint was confirmed" if sure and not terms.lossy else None
    mine = [line for line in sent if line["sha256"] == resumed]
    if not mine:
        return f"it resumed {resumed}, which nobody had stored before"
    if mine[0]["chain"] != execution.begin["chain"] or mine[0]["steps"] != execution.begin["steps"]:
        return f"it resumed {resumed} with another chain than was stored"
    if sure and mine[0]["at"] < _sent_at(sure[-1], sent) and not terms.lossy:
        return f"it resumed {resumed}, an older checkpoint than the last confirmed one"
    return None


def _sent_at(confirmed: dict[str, Any], sent: Sequence[dict[str, Any]]) -> float:
    return max(line["at"] for line in sent if line["sha256"] == confirmed["sha256"])

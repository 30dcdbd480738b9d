"""Balancing the books: every blob that is referred to is there, whole and the right one; no other is left."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import Any

from bson import ObjectId

from hyperfarm.blobs import REF, Blobs
from hyperfarm.errors import DatabaseError
from hyperfarm.jobs import JobDoc, JobState
from hyperfarm.store import Store
from tests.chaos.books import Finding, Terms, brief
from tests.chaos.journal import Journal

BUCKETS = ("farm", "fs")


def check_blobs(store: Store, journal: Journal, terms: Terms) -> list[Finding]:
    """Read every blob that a job or the experiment refers to, and compare it with what was saved."""
    blobs = Blobs(store.database)
    found = []
    jobs = store.find_jobs(terms.exp_key)
    for owner, doc in [(f"trial {job['tid']}", job) for job in jobs]:
        found += _check_references(blobs, owner, doc)
    for experiment in store.experiments():
        found += _check_references(blobs, f"experiment {experiment['_id']}", experiment)
    for job in jobs:
        if job["state"] == JobState.DONE:
            found += _check_saved(blobs, job, journal)
    return found


def references(value: Any) -> Iterator[dict[str, Any]]:
    """Everything in a document that refers to a blob of the bucket `farm`, as {blob, sha256, name}."""
    if isinstance(value, dict):
        if REF in value:
            yield {"blob": value[REF], "sha256": value["sha256"], "name": str(value.get("holds"))}
        elif isinstance(value.get("blob"), ObjectId) and "sha256" in value:
            yield {"blob": value["blob"], "sha256": value["sha256"], "name": str(value.get("name"))}
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def _check_references(blobs: Blobs, owner: str, doc: dict[str, Any]) -> Iterator[Finding]:
    for ref in references(doc):
        try:
            blobs.read(ref)
        except DatabaseError as error:
            told = brief(doc) if "tid" in doc else str(doc)[:1500]
            yield Finding(kind="blob", text=f"{owner}: {ref['name']}: {error}", detail=told)


def _check_saved(blobs: Blobs, job: JobDoc, journal: Journal) -> Iterator[Finding]:
    """The accepted execution saved exactly these bytes."""
    execution = journal.executions.get(str(job["result"].get("execution")))
    if execution is None or execution.end is None:
        return  # The books of the trials tell of it.
    stored = {ref["name"]: ref["sha256"] for ref in job.get("artifacts", ())}
    try:
        result = blobs.internalise(job["result"])
    except DatabaseError:
        return  # Told above.
    if "binary" in result:
        stored["binary"] = hashlib.sha256(result["binary"]).hexdigest()
    if stored != execution.end["saved"]:
        text = f"trial {job['tid']}: stored is {stored}, saved was {execution.end['saved']}"
        yield Finding(kind="saved", text=text, detail=brief(job))


def check_orphans(store: Store, tolerated: Collection[str] = ()) -> list[Finding]:
    """No file of GridFS without a document that refers to it, no chunk without its file, no stale report.

    Files of the kinds `tolerated` (by their metadata) may be there for nothing.
    """
    database = store.database
    named: set[ObjectId] = set()
    for collection in ("jobs", "experiments"):
        for doc in database[collection].find():
            named |= set(_ids(doc))
    found = []
    for bucket in BUCKETS:
        files = {file["_id"]: file for file in database[f"{bucket}.files"].find()}
        for blob, file in files.items():
            if blob not in named and (file.get("metadata") or {}).get("kind") not in tolerated:
                text = f"{bucket}.files: {file.get('filename')} {blob} belongs to nothing"
                found.append(Finding(kind="orphan", text=text, detail=str(file)))
        chunks = set(database[f"{bucket}.chunks"].distinct("files_id"))
        found += [
            Finding(kind="orphan", text=f"{bucket}.chunks: chunks of {blob}, which is no file")
            for blob in sorted(chunks - files.keys())
        ]
    holders = {
        (job["exp_key"], job["tid"], (job.get("lease") or job.get("accepted") or {}).get("token"))
        for job in database["jobs"].find({}, {"exp_key": 1, "tid": 1, "lease": 1, "accepted": 1})
    }
    stale = [
        report
        for report in database["reports"].find()
        if (report["exp_key"], report["tid"], report["token"]) not in holders
    ]
    if stale:
        trials = sorted({report["tid"] for report in stale})
        found.append(Finding(kind="orphan", text=f"{len(stale)} stale reports, of trials {trials}"))
    return found


def _ids(value: Any) -> Iterator[ObjectId]:
    if isinstance(value, ObjectId):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _ids(item)
    elif isinstance(value, list):
        for item in value:
            yield from _ids(item)

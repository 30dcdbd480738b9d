"""Which file of a trial is meant, and bringing it here. Nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

from hyperfarm.analysis.files import check_writable, write_whole
from hyperfarm.analysis.reading import MISSING, Document, Experiment, at_path, loss_of, outcome
from hyperfarm.blobs import REF, Blobs
from hyperfarm.errors import UsageError
from hyperfarm.jobs import JobDoc, JobState, TrialLimits

HOW_TO_SAVE = "call trial.save_model(model) or trial.save(name, file) in the objective"


def pull_file(blobs: Blobs, experiment: Experiment, job: JobDoc, name: str | None, path: Path) -> str:
    """Write a file of the trial to `path`, whole or not at all; return its name.

    `name` names a saved file, else bytes or text in the result (a dotted path), else an attachment. Without
    a name: the model, else the only file. Raises UsageError that names what there is, DatabaseError when the
    file is gone or damaged.
    """
    check_writable(path)
    artifact = _artifact(experiment, job, name)
    if artifact is not None:
        blobs.save(artifact, path)
        return str(artifact["name"])
    assert name is not None
    write_whole(path, _from_result(blobs, experiment, job, name))
    return name


def _artifact(experiment: Experiment, job: JobDoc, name: str | None) -> Document | None:
    """The saved file that is meant; None when `name` must be something else."""
    artifacts: list[Document] = job.get("artifacts") or []
    if name is not None:
        return next((one for one in artifacts if one["name"] == name), None)
    where = f"trial {job['tid']} of {experiment.name}"
    removed = _model_removed(job)
    if removed:  # Another file in the model's place would be a surprise.
        others = ", ".join([one["name"] for one in artifacts] + _other_names(job))
        raise UsageError(
            f"the model of {where} {removed}" + (f"; choose by --name: {others}" if others else "")
        )
    models = [one for one in artifacts if one["kind"] == "model"] or artifacts
    if len(models) == 1:
        return models[0]
    if models:
        raise UsageError(f"{where} saved several files; choose one by --name: {_names(models)}")
    if not JobState(job["state"]).is_finished:
        raise UsageError(f"{where} is {outcome(job)}; its files can be pulled when it is done")
    other = _other_names(job)
    if other:
        raise UsageError(f"{where} saved no file, but its result can be pulled by --name: {', '.join(other)}")
    raise UsageError(f"{where} saved no model; to have one, {HOW_TO_SAVE}")


def _names(artifacts: list[Document]) -> str:
    return ", ".join(one["name"] for one in artifacts)


def _model_removed(job: JobDoc) -> str | None:
    """Why the model that the trial saved is not there, as the rest of a sentence; None when nobody removed it."""
    if not job.get("models_removed") or any(one["kind"] == "model" for one in job.get("artifacts") or ()):
        return None
    keep = TrialLimits.of(job).keep_models
    if keep == 0:
        return "was removed, because no models are kept (--keep-models none)"
    best = {None: "models of the best trials are", 1: "model of the best trial is"}
    return f"was removed, because only the {best.get(keep, f'models of the {keep} best trials are')} kept"


def _other_names(job: JobDoc) -> list[str]:
    """Bytes at the top of the result, there or in GridFS, and attachments."""
    result = job.get("result") or {}
    held = [key for key, value in result.items()
            if isinstance(value, bytes) or (isinstance(value, dict) and value.get("holds") == "bytes")]  # fmt: skip
    return held + [name for name, _ in job.get("_attachments") or ()]


def _from_result(blobs: Blobs, experiment: Experiment, job: JobDoc, name: str) -> bytes:
    result = job.get("result") or {}
    value = at_path(result, name.removeprefix("result."))
    if value is MISSING and REF in result:
        value = at_path(blobs.internalise(result), name.removeprefix("result."))
    if isinstance(value, dict) and REF in value:
        value = blobs.internalise(value)
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    if any(name == attached for attached, _ in job.get("_attachments") or ()):
        return blobs.read_attachment(job, name)
    there = [one["name"] for one in job.get("artifacts") or ()] + _other_names(job)
    known = f"it has {', '.join(there)}" if there else f"it saved nothing; to have a file, {HOW_TO_SAVE}"
    if removed := _model_removed(job):
        known += f"; its model {removed}"
    problem = "has no file called" if value is MISSING else f"holds a {type(value).__name__}, no file, under"
    raise UsageError(f"trial {job['tid']} of {experiment.name} {problem} {name!r}; {known}")


def described(experiment: Experiment, job: JobDoc, name: str) -> str:
    """One line about a file that has been pulled."""
    loss = loss_of(job)
    told = "" if loss is None else f", loss {loss:.6g}"
    return f"{name} of trial {job['tid']} of {experiment.name}{told}"

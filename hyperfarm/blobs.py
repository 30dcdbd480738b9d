"""Everything that lies in GridFS: models and other artifacts, logs, code bundles, results too big for a document.

Ours lie in the bucket `farm`; hyperopt's attachments lie in `fs`, under hyperopt's names. A blob counts only
when a job document refers to it, and a job document refers to it only after the blob is whole: a crash in
between leaves an orphan, never half a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions
from gridfs import GridFS, GridFSBucket, NoFile
from pymongo.database import Database

from hyperfarm import settings
from hyperfarm.errors import DatabaseError, UsageError
from hyperfarm.jobs import Claim, JobDoc
from hyperfarm.mongo import Document, translated
from hyperfarm.values import decode_keys, encode_keys

REF = "hyperfarm_blob"
"""The key that marks a dict as a reference to a blob: {REF: id, "size": bytes, "sha256": hex, "holds": kind}.

The reference of a whole result also lists, as "parts", the blobs that are referred to inside that blob.
"""
MAX_INLINE_BINARY = 1 << 20
MAX_INLINE_RESULT = 8 << 20
"""Of the 16 MB of a document, the rest is left to parameters, history and errors."""
CHUNK = 1 << 20
KEPT_INLINE = 200
_SHORT_TEXT = 1000
_AWARE: CodecOptions[Document] = CodecOptions(tz_aware=True)


class Blobs:
    """Blobs of one farm, in the same database as its jobs."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database
        self._farm = GridFSBucket(database, bucket_name="farm", chunk_size_bytes=CHUNK)
        self._attachments = GridFSBucket(database)

    def put(self, data: bytes | IO[bytes] | Path, name: str, **metadata: Any) -> Document:
        """Store a blob whole; return {name, blob, size, sha256}. A failure on the way leaves nothing visible."""
        source: IO[bytes]
        if isinstance(data, bytes):
            source = io.BytesIO(data)
        elif isinstance(data, Path):
            source = data.open("rb")
        else:
            source = data
        digest, size = hashlib.sha256(), 0
        with translated(f"storing {name}"), source:
            out = self._farm.open_upload_stream(name, metadata=metadata)
            try:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    out.write(chunk)
                out.close()
            except BaseException:
                out.abort()  # Leaving GridIn's own `with` would leave the chunks behind.
                raise
        return {"name": name, "blob": out._id, "size": size, "sha256": digest.hexdigest()}

    def put_for(self, claim: Claim, data: bytes | IO[bytes] | Path, name: str, kind: str) -> Document:
        """Store a blob of a running job; it becomes visible when the job's document refers to it."""
        metadata = {"exp_key": claim.exp_key, "tid": claim.tid, "token": claim.lease.token, "kind": kind}
        return {**self.put(data, name, **metadata), "kind": kind}

    def read(self, ref: Mapping[str, Any]) -> bytes:
        """Return the blob's bytes. Raises DatabaseError when it is gone or differs from its SHA-256."""
        out = io.BytesIO()
        self._download(ref, out)
        return out.getvalue()

    def save(self, ref: Mapping[str, Any], path: Path) -> None:
        """Write the blob to `path`; the file appears whole or not at all. Raises as `read` does."""
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as out:
                self._download(ref, out)
            part.replace(path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def _download(self, ref: Mapping[str, Any], out: IO[bytes]) -> None:
        digest = hashlib.sha256()
        name = ref.get("name", "a stored value")
        with translated(f"reading {name}"):
            try:
                with self._farm.open_download_stream(ref["blob"]) as source:
                    while chunk := source.read(CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
            except NoFile:
                raise DatabaseError(f"{name} is not in the database any more") from None
        if digest.hexdigest() != ref["sha256"]:
            raise DatabaseError(f"{name} is damaged: its SHA-256 is not the one that was stored with it")

    def delete(self, ids: Iterable[ObjectId], attachments: Iterable[ObjectId] = ()) -> None:
        """Delete blobs and attachments; those that are gone already do not matter."""
        with translated("deleting blobs"):
            for bucket, names in ((self._farm, ids), (self._attachments, attachments)):
                for blob in names:
                    try:
                        bucket.delete(blob)
                    except NoFile:
                        continue

    def delete_experiment(self, exp_key: str | None, attachments: Iterable[ObjectId]) -> None:
        """Delete every blob of the experiment, and the named attachments. Indexes `owner`."""
        # Trials' attachments of hyperopt's own have no exp_key: they are not those of the experiment None.
        own = {"metadata.exp_key": {"$eq": exp_key, "$exists": True}}
        with translated("listing blobs"):
            blobs = [file["_id"] for file in self._database["farm.files"].find(own, {"_id": 1})]
            attached = [file["_id"] for file in self._database["fs.files"].find(own, {"_id": 1})]
            if exp_key is not None:
                named = self._database["fs.files"].find({"exp_key": exp_key}, {"_id": 1})
                attached += [file["_id"] for file in named]
        self.delete(blobs, {*attached, *attachments})

    def experiment_attachment(self, exp_key: str | None, name: str) -> Document | None:
        """The newest file in `fs` that hyperopt takes for this attachment of the experiment; index of GridFS.

        Its own fields: `_id`, `filename`, `exp_key` (absent for None), `signature` (ours).
        """
        with translated(f"looking for attachment {name}"):
            query = {"filename": name, "exp_key": exp_key}
            return self._database["fs.files"].find_one(query, sort=[("uploadDate", -1)])

    def put_experiment_attachment(
        self, exp_key: str | None, name: str, data: bytes, signature: str, **more: Any
    ) -> None:
        """Store an attachment of the experiment as hyperopt does, and then delete those that it replaces.

        `more` are further fields of the file's document.
        """
        fields: Document = more if exp_key is None else {"exp_key": exp_key, **more}
        with translated(f"storing attachment {name}"):
            query = {"filename": name, "exp_key": exp_key}
            before = [file["_id"] for file in self._database["fs.files"].find(query, {"_id": 1})]
            GridFS(self._database).put(data, filename=name, signature=signature, **fields)
        self.delete((), before)

    def read_file(self, file: Document) -> bytes:
        """The content of a file in `fs`."""
        with translated(f"reading attachment {file.get('filename')}"):
            try:
                return self._attachments.open_download_stream(file["_id"]).read()
            except NoFile:
                raise DatabaseError(f"{file.get('filename')} is not in the database any more") from None

    def delete_of_jobs(self, docs: Iterable[JobDoc]) -> None:
        """Delete everything that these jobs refer to."""
        for doc in docs:
            kept = [*doc.get("artifacts", ()), *(doc[key] for key in ("log", "checkpoint") if doc.get(key))]
            attached = [blob for _, blob in doc.get("_attachments", ())]
            self.delete([*(ref["blob"] for ref in kept), *blob_ids(doc.get("result"))], attached)

    def attachment_ids(self, exp_key: str | None) -> list[ObjectId]:
        """The ids, in the bucket `fs`, of all attachments of the experiment's jobs."""
        with translated("listing attachments"):
            docs = self._database["jobs"].find({"exp_key": exp_key}, {"_attachments": 1})
            return [blob for doc in docs for _, blob in doc.get("_attachments", ())]

    def put_attachment(self, claim: Claim, name: str, data: bytes) -> tuple[str, ObjectId]:
        """Store an attachment as hyperopt does; return the pair that goes into the job's `_attachments`.

        Its metadata tells it from hyperopt's own.
        """
        metadata = {"exp_key": claim.exp_key, "tid": claim.tid, "token": claim.lease.token}
        with translated(f"storing attachment {name}"):
            blob: ObjectId = self._attachments.upload_from_stream(name, data, metadata=metadata)
        return name, blob

    def read_attachment(self, job: JobDoc, name: str) -> bytes:
        """Return an attachment of a job. Raises KeyError when it has none of this name."""
        for known, blob in job.get("_attachments", ()):
            if known == name:
                with translated(f"reading attachment {name}"):
                    return self._attachments.open_download_stream(blob).read()
        raise KeyError(name)

    def externalise(self, result: Document, claim: Claim) -> Document:
        """Return `result` in a form that fits a document: big binaries, or all of it, moved to blobs.

        What stays in any case: status, loss and up to KEPT_INLINE numbers and short texts of the top level.
        """
        small: Document = self._move_binaries(result, claim, "result")
        data = bson.encode(encode_keys(small))
        if len(data) <= MAX_INLINE_RESULT:
            return small
        ref = self.put_for(claim, data, "result", "result")
        small_ones = [(key, value) for key, value in result.items() if _is_small(key) and _is_small(value)]
        kept = {**dict(small_ones[:KEPT_INLINE]), "status": result["status"]}
        if "loss" in result:
            kept["loss"] = result["loss"]
        parts = blob_ids(small)
        if parts:  # Whoever asks what the job refers to need not read the blob.
            kept["parts"] = parts
        return {**kept, REF: ref["blob"], "size": ref["size"], "sha256": ref["sha256"], "holds": "result"}

    def _move_binaries(self, value: Any, claim: Claim, where: str) -> Any:
        if isinstance(value, bytes) and len(value) > MAX_INLINE_BINARY:
            ref = self.put_for(claim, value, where, "value")
            return {REF: ref["blob"], "size": ref["size"], "sha256": ref["sha256"], "holds": "bytes"}
        if isinstance(value, dict):
            return {key: self._move_binaries(item, claim, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self._move_binaries(item, claim, where) for item in value]
        return value

    def internalise(self, value: Any) -> Any:
        """Undo `externalise`: return the value with every reference replaced by what it refers to."""
        if isinstance(value, dict) and REF in value:
            data = self.read({"blob": value[REF], "sha256": value["sha256"]})
            if value["holds"] == "bytes":
                return data
            return self.internalise(decode_keys(bson.decode(data, _AWARE)))
        if isinstance(value, dict):
            return {key: self.internalise(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.internalise(item) for item in value]
        return value


def blob_ids(value: Any) -> list[ObjectId]:
    """All blobs that a stored result refers to."""
    if isinstance(value, dict):
        parts = value.get("parts")
        own = [value[REF], *(parts if isinstance(parts, list) else ())] if REF in value else []
        return own + [blob for item in value.values() for blob in blob_ids(item)]
    if isinstance(value, list):
        return [blob for item in value for blob in blob_ids(item)]
    return []


def _is_small(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return len(value) <= _SHORT_TEXT
    return value is None or isinstance(value, (bool, int, float))


def load_result(doc: JobDoc, mongo: str | None = None) -> Document:
    """Return the result of a job document with everything that lies in GridFS put back, byte for byte.

    `doc` comes from `MongoTrials`, from `minimize`, or from a plain pymongo query on `jobs`. `mongo` is the
    farm's URL (default: as the command line finds it). Raises DatabaseError when a part is gone or damaged.
    """
    from hyperfarm.embedded import running
    from hyperfarm.mongo import connect

    result: Document = decode_keys(doc["result"])
    if not blob_ids(result):
        return result
    url = settings.mongo_url(mongo)
    if url is None:
        with running() as private:
            return load_result(doc, private)
    database = connect(url)
    try:
        loaded: Document = Blobs(database).internalise(result)
        return loaded
    finally:
        database.client.close()

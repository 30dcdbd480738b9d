"""hyperopt's MongoJobs on today's pymongo: the jobs' collection and its files, for programs that use them directly.

The farm itself never does: it goes through store.py, with leases. What is reserved here has no lease, as with
hyperopt's own workers, and is taken back only after the legacy grace.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import gridfs
import pymongo
from bson import ObjectId
from bson.codec_options import CodecOptions
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import PyMongoError

from hyperfarm.errors import DatabaseUnavailable, SettingsError
from hyperfarm.jobs import JobState
from hyperfarm.mongo import Document, SelfClosing, connect, hide_password

SSH_SCHEMES = ("mongo+ssh", "ssh+mongo")
TUNNEL_S = 15.0
DEFAULT_PORT = 27017
NAIVE: CodecOptions[Document] = CodecOptions(tz_aware=False)
"""Times in these documents have no zone and are UTC, as hyperopt's always were."""


class OperationFailure(Exception):
    """MongoDB has refused a statement, or the document is not as it was when it was read."""


def as_mongo_str(text: str) -> str:
    """Put `mongo://` before an address that has no scheme."""
    return text if "://" in text else f"mongo://{text}"


def parse_url(
    url: str, pwfile: str | None = None
) -> tuple[str, str | None, str | None, str, int, str, str, str | None]:
    """Take `protocol://[user[:password]@]host[:port]/db/collection[?authSource=db]` apart.

    Returns (protocol, user, password, host, port, db, collection, authSource). A password that is missing is
    read from the first line of `pwfile`. Raises ValueError for an address without database or collection.
    """
    protocol, _, rest = url.partition("://")
    account, _, place = rest.rpartition("@")
    where = urlsplit(f"mongo://{place}")
    path = where.path.split("/")[1:]
    if len(path) != 2 or not all(path):
        raise ValueError(f"{hide_password(url)!r} is not understood: write mongo://host:port/database/jobs")
    user, colon, password = account.partition(":")
    secret = unquote(password) if colon else None
    if user and secret is None and pwfile:
        with open(pwfile) as file:
            secret = file.readline().rstrip("\n")
    source = parse_qs(where.query).get("authSource")
    host, port = where.hostname or "localhost", where.port or DEFAULT_PORT
    name = unquote(user) if user else None
    return protocol, name, secret, host, port, path[0], path[1], source[-1] if source else None


def connection_from_string(
    text: str,
) -> tuple[pymongo.MongoClient[Document], Any, Database[Document], Collection[Document]]:
    """Connect to any address that hyperfarm takes, or through `mongo+ssh://`.

    Returns (client, the ssh process of the tunnel or None, database, collection of the jobs). Raises
    SettingsError, DatabaseUnavailable or DatabaseError with one sentence.
    """
    protocol, _, rest = text.partition("://")
    tunnel = None
    if protocol in SSH_SCHEMES:
        tunnel, rest = _open_tunnel(text)
        text = f"mongo://{rest}"
    database = connect(text, client_class=SelfClosing).with_options(codec_options=NAIVE)
    return database.client, tunnel, database, database["jobs"]


def _open_tunnel(url: str) -> tuple[subprocess.Popen[bytes], str]:
    """Forward a port of this machine to the host's own MongoDB by ssh; return (ssh, the address from here)."""
    _, user, password, host, port, database, collection, source = parse_url(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = free.getsockname()[1]
    forward = ["-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes", "-L", f"{here}:127.0.0.1:{port}"]
    ssh = subprocess.Popen(["ssh", "-N", *forward, host], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + TUNNEL_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", here), 1):
            break
        if ssh.poll() is not None or time.monotonic() > deadline:
            ssh.kill()
            ssh.wait()
            raise DatabaseUnavailable(f"no tunnel to {host} by ssh; try: ssh {host} true")
        time.sleep(0.05)
    account = "" if user is None else f"{user}@" if password is None else f"{user}:{password}@"
    query = f"?authSource={source}" if source else ""
    return ssh, f"{account}127.0.0.1:{here}/{database}/{collection}{query}"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except PyMongoError as error:
        raise OperationFailure(hide_password(str(error))) from error


class MongoJobs:
    """The jobs of one database, as hyperopt's class of this name shows them.

    `db` database, `jobs` collection, `gfs` GridFS of the attachments, `conn` client, `tunnel` its ssh or None.
    """

    def __init__(
        self,
        db: Database[Document],
        jobs: Collection[Document],
        gfs: gridfs.GridFS,
        conn: Any,
        tunnel: Any = None,
        config_name: str = "spec",
    ) -> None:
        self.db, self.jobs, self.gfs = db, jobs, gfs
        self.conn, self.tunnel, self.config_name = conn, tunnel, config_name

    @property
    def collection(self) -> Collection[Document]:
        return self.jobs

    @classmethod
    def alloc(
        cls,
        dbname: str,
        host: str = "localhost",
        auth_dbname: str | None = "admin",
        port: int = DEFAULT_PORT,
        jobs_coll: str = "jobs",
        gfs_coll: str = "fs",
        ssh: bool = False,
        user: str | None = None,
        pw: str | None = None,
    ) -> MongoJobs:
        """Connect to a database by its parts; `jobs_coll` must be "jobs", where workers look."""
        if jobs_coll != "jobs":
            raise SettingsError(f"jobs lie in the collection jobs, not in {jobs_coll}: workers look there")
        account = "" if user is None else f"{user}@" if pw is None else f"{user}:{pw}@"
        query = f"?authSource={auth_dbname}" if user and auth_dbname else ""
        scheme = SSH_SCHEMES[0] if ssh else "mongo"
        return cls.new_from_connection_str(
            f"{scheme}://{account}{host}:{port}/{dbname}/jobs{query}", gfs_coll
        )

    @classmethod
    def new_from_connection_str(
        cls, conn_str: str, gfs_coll: str = "fs", config_name: str = "spec"
    ) -> MongoJobs:
        connection, tunnel, db, jobs = connection_from_string(conn_str)
        return cls(db, jobs, gridfs.GridFS(db, collection=gfs_coll), connection, tunnel, config_name)

    def __iter__(self) -> Iterator[Document]:
        return iter(self.jobs.find())

    def __len__(self) -> int:
        return self.jobs.count_documents({})

    def __bool__(self) -> bool:
        return True

    # ---- indexes and lists -------------------------------------------------------------------------

    def create_jobs_indexes(self) -> None:
        for key in ("exp_key", "result.loss", "book_time"):
            self.jobs.create_index(key)

    def create_drivers_indexes(self) -> None:
        self.db["drivers"].create_index("exp_key", unique=True)

    def create_indexes(self) -> None:
        self.create_jobs_indexes()
        self.create_drivers_indexes()

    def _in_state(self, state: JobState, cursor: bool) -> Any:
        found = self.jobs.find({"state": int(state)})
        return found if cursor else list(found)

    def jobs_complete(self, cursor: bool = False) -> Any:
        return self._in_state(JobState.DONE, cursor)

    def jobs_error(self, cursor: bool = False) -> Any:
        return self._in_state(JobState.ERROR, cursor)

    def jobs_queued(self, cursor: bool = False) -> Any:
        return self._in_state(JobState.NEW, cursor)

    def jobs_running(self, cursor: bool = False) -> list[Document]:
        if cursor:
            raise NotImplementedError("jobs_running has no cursor")
        return [job for job in self._in_state(JobState.RUNNING, False) if not job.get("MIA", False)]

    def jobs_dead(self, cursor: bool = False) -> list[Document]:
        if cursor:
            raise NotImplementedError("jobs_dead has no cursor")
        return [job for job in self._in_state(JobState.RUNNING, False) if job.get("MIA", False)]

    # ---- changing jobs -----------------------------------------------------------------------------

    def insert(self, job: Document) -> Document:
        """Insert a copy of `job`; return the copy, which has its `_id`. Raises OperationFailure."""
        made = copy.deepcopy(job)
        with _told():
            self.jobs.insert_one(made)
        return made

    def delete(self, job: Document) -> None:
        """Delete the jobs that match. Raises OperationFailure."""
        with _told():
            self.jobs.delete_many(job)

    def delete_all(self, cond: Document | None = None) -> None:
        """Delete the jobs that match `cond`, with their attachments. Raises OperationFailure."""
        with _told():
            for job in self.jobs.find(cond or {}, {"_attachments": 1}):
                for _, blob in job.get("_attachments", ()):
                    self.gfs.delete(blob)
                self.jobs.delete_one({"_id": job["_id"]})

    def delete_all_error_jobs(self) -> None:
        self.delete_all({"state": int(JobState.ERROR)})

    def reserve(
        self, host_id: Any, cond: Document | None = None, exp_key: str | None = None
    ) -> Document | None:
        """Make one new job running, owned by `host_id`, and return it; None without any.

        Without a lease: nobody notices when the caller dies, until the legacy grace is over.
        """
        wanted = dict(cond or {})
        if exp_key is not None:
            wanted["exp_key"] = exp_key
        if wanted.get("owner") is not None:
            raise ValueError("refusing to reserve owned job")
        wanted |= {"owner": None, "state": int(JobState.NEW)}
        now = utc_now()
        fields = {"owner": host_id, "state": int(JobState.RUNNING), "book_time": now, "refresh_time": now}
        with _told():
            return self.jobs.find_one_and_update(
                wanted, {"$set": fields}, sort=[("_id", 1)], return_document=pymongo.ReturnDocument.AFTER
            )

    def refresh(self, doc: Document) -> None:
        """Say that somebody still works at the job."""
        self.update(doc, {"refresh_time": utc_now()})

    def update(
        self,
        doc: Document,
        dct: Document,
        collection: Collection[Document] | None = None,
        do_sanity_checks: bool = True,
    ) -> Document:
        """Set the fields `dct` of the document if it still has the `version` that `doc` has.

        `doc` is brought up to date and returned. Raises OperationFailure if it was changed meanwhile.
        """
        if "_id" not in doc:
            raise ValueError('doc must have an "_id" key to be updated')
        fields = copy.deepcopy(dct)
        if fields.pop("_id", doc["_id"]) != doc["_id"]:
            raise ValueError("cannot update the _id field")
        if fields.get("version", doc.get("version")) != doc.get("version"):
            warnings.warn('Ignoring "version" field in update dictionary', stacklevel=2)
        query = {"_id": doc["_id"]}
        if "version" in doc:
            query["version"] = doc["version"]
        fields["version"] = doc["version"] + 1 if "version" in doc else 1
        with _told():
            done = (self.jobs if collection is None else collection).update_one(query, {"$set": fields})
        if not done.matched_count and do_sanity_checks:
            raise OperationFailure(f"trial {doc.get('tid')} was changed by somebody else: not updated")
        doc.update(fields)
        return doc

    # ---- attachments of jobs -----------------------------------------------------------------------

    def attachment_names(self, doc: Document) -> list[str]:
        return [str(name) for name, _ in doc.get("_attachments", ())]

    def _attachment(self, doc: Document, name: str) -> ObjectId:
        for known, blob in doc.get("_attachments", ()):
            if known == name:
                found: ObjectId = blob
                return found
        raise OperationFailure(f"Attachment not found: {name}")

    def set_attachment(
        self, doc: Document, blob: bytes | str, name: str, collection: Collection[Document] | None = None
    ) -> None:
        """Attach `blob` under `name`; one of that name is replaced, and deleted once it is."""
        data = blob.encode() if isinstance(blob, str) else blob
        before = [pair for pair in doc.get("_attachments", ()) if pair[0] == name]
        others = [pair for pair in doc.get("_attachments", ()) if pair[0] != name]
        with _told():
            made = self.gfs.put(data, filename=f"{doc['_id']}_{name}")
        try:
            self.update(doc, {"_attachments": [*others, (name, made)]}, collection)
        except OperationFailure:
            self.gfs.delete(made)
            raise
        for _, replaced in before:
            self.gfs.delete(replaced)

    def get_attachment(self, doc: Document, name: str) -> bytes:
        """Raises OperationFailure when the document has none of this name."""
        blob = self._attachment(doc, name)
        try:
            data: bytes = self.gfs.get(blob).read()
        except gridfs.NoFile:
            raise OperationFailure(f"Attachment is gone: {name}") from None
        return data

    def delete_attachment(
        self, doc: Document, name: str, collection: Collection[Document] | None = None
    ) -> None:
        blob = self._attachment(doc, name)
        self.update(doc, {"_attachments": [p for p in doc["_attachments"] if p[0] != name]}, collection)
        self.gfs.delete(blob)


def utc_now() -> datetime:
    """The time in UTC without a zone, to the millisecond, as the database keeps it."""
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)

"""What `hyperfarm doctor` asks the database; it reads only, and changes nothing.

The statements here are the doctor's own; each names its index where it looks at jobs.
"""

from __future__ import annotations

import contextlib
import platform
import time
from datetime import datetime, timedelta
from functools import cached_property
from importlib import metadata
from typing import Any

import hyperfarm
from hyperfarm import doctor, doctor_farm
from hyperfarm.blobs import Blobs
from hyperfarm.doctor import Check, Topology
from hyperfarm.doctor_farm import Disk, Trouble, Versions
from hyperfarm.errors import BundleError, DatabaseError, DatabaseUnavailable, OutcomeUnknown
from hyperfarm.indexes import INDEXES
from hyperfarm.jobs import JobState
from hyperfarm.mongo import Document, translated
from hyperfarm.store import Store

VERIFIED = 5
"""So many experiments' code is fetched and verified, the newest ones."""
CLOCK_LOOKS = 5


def here() -> Versions:
    """What this host runs."""
    return Versions(
        python=platform.python_version(),
        hyperfarm=hyperfarm.__version__,
        hyperopt=metadata.version("hyperopt"),
    )


class Facts:
    """What the database tells, each thing asked for once. `secret` None: this host has no usable one."""

    def __init__(self, store: Store, secret: bytes | None) -> None:
        self.store, self.database, self.secret = store, store.database, secret

    def _ask(self, command: str, database: str | None = None) -> Document:
        asked = self.database if database is None else self.database.client[database]
        with translated(f"asking for {command}"):
            return asked.command(command)

    @cached_property
    def now(self) -> datetime:
        return self.store.now()

    @cached_property
    def version(self) -> list[int]:
        return list(self._ask("buildInfo")["versionArray"])

    @cached_property
    def topology(self) -> Topology:
        hello = self._ask("hello")
        if hello.get("msg") == "isdbgrid":
            return Topology(kind=doctor.SHARDED)
        if "setName" not in hello:
            return Topology(kind=doctor.STANDALONE)
        hosts = len(hello.get("hosts", ())) + len(hello.get("passives", ()))
        members: dict[str, str] | None = None
        with contextlib.suppress(DatabaseError):  # It takes a right of its own (clusterMonitor).
            status = self._ask("replSetGetStatus", "admin")
            members = {one["name"]: one["stateStr"] for one in status["members"]}
        return Topology(kind=doctor.REPLICA_SET, hosts=hosts, primary=hello.get("primary"), members=members)

    @cached_property
    def default_write_concern(self) -> Document | None:
        with contextlib.suppress(DatabaseError):  # Standalone servers have none; it takes a right of its own.
            default: Document | None = self._ask("getDefaultRWConcern", "admin").get("defaultWriteConcern")
            return default
        return None

    @cached_property
    def indexes(self) -> dict[str, Document]:
        with translated("listing indexes"):
            return {name: dict(self.database[name].index_information()) for name in INDEXES}

    @cached_property
    def clock(self) -> tuple[float, float]:
        """(seconds by which the database's clock is ahead, the bound of the error): of the quickest answer."""
        looks = []
        for _ in range(CLOCK_LOOKS):
            asked, began = time.time(), time.monotonic()
            theirs = self.store.now().timestamp()
            half = (time.monotonic() - began) / 2
            looks.append((half, theirs - asked - half))
        half, ahead = min(looks)
        return ahead, half

    def server_disk(self) -> Check | None:
        """The room that the server has, if it tells."""
        stats = self._ask("dbStats")
        total, used = stats.get("fsTotalSize"), stats.get("fsUsedSize")
        if not total or used is None:
            return None
        remedy = (
            "make room on the server's disk (`hyperfarm rm` for old experiments): a full one stops MongoDB"
        )
        return doctor_farm.check_disk(
            Disk(name="server disk", place="the server's data", free=total - used, total=total, remedy=remedy)
        )

    @cached_property
    def workers(self) -> list[Document]:
        """All that are registered, dead ones too."""
        with translated("listing workers"):
            return list(self.database["workers"].find().sort("_id"))

    @cached_property
    def waiting(self) -> list[str | None]:
        """The exp_keys that have jobs waiting; index `queue`."""
        group: list[Document] = [{"$match": {"state": int(JobState.NEW)}}, {"$group": {"_id": "$exp_key"}}]
        return [row["_id"] for row in self._jobs(group, "queue")]

    def _jobs(self, pipeline: list[Document], index: str) -> list[Document]:
        """The rows of a pipeline over jobs; the index is named if it is there."""
        hint: dict[str, Any] = {"hint": index} if index in self.indexes["jobs"] else {}
        with translated("looking at jobs"):
            return list(self.database["jobs"].aggregate(pipeline, **hint))

    def _troubles(self, match: Document, index: str, since: str) -> list[Trouble]:
        group = {
            "_id": "$exp_key",
            "count": {"$sum": 1},
            "tid": {"$max": "$tid"},
            "since": {"$min": f"${since}"},
        }
        rows = self._jobs([{"$match": match}, {"$group": group}, {"$sort": {"_id": 1}}], index)
        return [Trouble(exp_key=row.pop("_id"), **row) for row in rows]

    @cached_property
    def expired(self) -> list[Trouble]:
        """Running jobs whose lease expired long ago; index `lease_expiry`."""
        before = self.now - timedelta(seconds=doctor_farm.LONG_EXPIRED_S)
        match = {"state": int(JobState.RUNNING), "lease.expires": {"$lt": before}}
        return self._troubles(match, "lease_expiry", "lease.expires")

    @cached_property
    def foreign(self) -> list[Trouble]:
        """Running jobs without a lease; index `lease_expiry`."""
        match = {"state": int(JobState.RUNNING), "lease.expires": None}
        return self._troubles(match, "lease_expiry", "book_time")

    @cached_property
    def given_up(self) -> list[Trouble]:
        """Jobs that ran out of attempts of late; index `view` leads to those that ended in an error."""
        match = {"state": int(JobState.ERROR), "error": "AttemptsExhausted"}
        match["refresh_time"] = {"$gte": self.now - doctor_farm.LATELY}
        return self._troubles(match, "view", "refresh_time")

    def signatures(self) -> Check | None:
        """Verify the newest code of the newest experiments."""
        with_code = {"bundles.0": {"$exists": True}}
        with translated("listing experiments"):
            experiments = self.database["experiments"]
            total = experiments.count_documents(with_code)
            newest = experiments.find(with_code, {"bundles": {"$slice": -1}}).sort("created", -1)
            docs = list(newest.limit(VERIFIED))
        faults = {}
        if self.secret is not None:
            for doc in docs:
                fault = self._fault(doc["_id"], doc["bundles"][0], self.secret)
                if fault is not None:
                    faults[str(doc["_id"])] = fault
        return doctor_farm.check_signatures(faults, len(docs), total, self.secret is not None)

    def _fault(self, key: str | None, entry: Document, secret: bytes) -> str | None:
        from hyperfarm import bundle

        try:
            content = Blobs(self.database).read(entry)
            bundle.verify(secret, content, key, entry["revision"], entry.get("signature"))
        except (DatabaseUnavailable, OutcomeUnknown):
            raise
        except (BundleError, DatabaseError) as error:
            return str(error)
        return None

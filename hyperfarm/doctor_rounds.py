"""The doctor's round: makes every check, gathering the facts about this host on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperfarm import doctor, doctor_farm, settings
from hyperfarm.cli_options import database_url
from hyperfarm.doctor import Check, good, problem, warning
from hyperfarm.doctor_facts import Facts, here
from hyperfarm.doctor_farm import Disk, Secret, living
from hyperfarm.errors import DatabaseError, DatabaseUnavailable, EmbeddedError, OutcomeUnknown, SettingsError
from hyperfarm.mongo import connect, hide_password
from hyperfarm.store import Store


def examine(mongo: str | None) -> Iterator[Check]:
    """Make every check and yield each as it comes out; what depends on a failed one is left out.

    Without any URL the private database is started for the while. Raises SettingsError for an address that
    makes no sense.
    """
    secret, key = _secret()
    private = settings.mongo_url(mongo) is None
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(database_url(mongo))
            store = Store(connect(url, app="hyperfarm doctor"))
            stack.callback(store.close)
        except EmbeddedError as error:
            yield problem("database", str(error), "or name another database by --mongo URL")
        except DatabaseError as error:
            yield _unreachable(error)
        else:
            yield good("database", f"{hide_password(url)} answers")
            yield from _database(Facts(store, key))
        yield doctor_farm.check_secret(secret)
        yield from _disks(private)


def _unreachable(error: DatabaseError) -> Check:
    cause = str(error.__cause__)
    if "wire version" in cause:
        return problem("server", hide_password(cause), "upgrade the server: MongoDB 5.0 or newer is needed")
    if "Primary()" in cause or "No primary" in cause:
        advice = (
            "the replica set has no primary: a majority of its members must be up (rs.status() in mongosh)"
        )
        return problem("database", str(error).partition("; ")[0], advice)
    text, _, advice = str(error).partition("; ")
    return problem("database", text, advice or "check the address, the user, and the server's own log")


def _database(facts: Facts) -> Iterator[Check]:
    checks: dict[str, Callable[[], Check | None]] = {
        "server": lambda: doctor.check_server(facts.version),
        "topology": lambda: doctor.check_topology(facts.topology),
        "write concern": lambda: doctor.check_write_concern(
            facts.store.database.write_concern.document, facts.default_write_concern, facts.topology
        ),
        "indexes": lambda: doctor.check_indexes(facts.indexes),
        "clock": lambda: doctor.check_clock(*facts.clock),
        "server disk": facts.server_disk,
        "workers": lambda: doctor_farm.check_workers(facts.workers, facts.waiting, facts.now),
        "versions": lambda: doctor_farm.check_versions(facts.workers, here(), facts.now),
        "refusals": lambda: doctor_farm.check_refusals(facts.workers, facts.waiting, facts.now),
        "slots": lambda: doctor_farm.check_pauses(facts.workers, facts.now),
        "leases": lambda: doctor_farm.check_leases(facts.expired, bool(living(facts.workers, facts.now))),
        "foreign workers": lambda: doctor_farm.check_foreign(facts.foreign, facts.now),
        "attempts": lambda: doctor_farm.check_exhausted(facts.given_up),
        "signatures": facts.signatures,
    }
    for name, make in checks.items():
        try:
            check = make()
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            yield problem(name, str(error), "the database went away meanwhile: ask again when it is back")
            return
        except DatabaseError as error:
            advice = "give this user the role readWrite on the database, if that is what is missing"
            yield warning(name, f"cannot be looked at: {error}", advice)
        else:
            if check is not None:
                yield check


# ---- this host -------------------------------------------------------------------------------------------


def _secret() -> tuple[Secret, bytes | None]:
    """What there is to say about the secret, and the secret; none is made."""
    file = settings.secret_file()
    try:
        exists = file.exists()
        return Secret(file=str(file), exists=exists), settings.farm_secret() if exists else None
    except SettingsError as error:
        return Secret(file=str(file), exists=True, fault=str(error)), None
    except OSError as error:
        fault = f"the farm's secret cannot be looked at: {error.strerror}: {file}"
        return Secret(file=str(file), exists=True, fault=fault), None


def _disks(private: bool) -> Iterator[Check]:
    """Room for what hyperfarm writes on this host."""
    from hyperfarm import embedded

    try:
        temp = Path(tempfile.gettempdir())
    except OSError as error:
        yield problem("temp disk", str(error.strerror or error), "set TMPDIR to a folder that can be written")
    else:
        yield _disk("temp disk", temp, "make room there, or set TMPDIR to another folder")
    remedy = "make room there, or set HYPERFARM_CACHE to another folder"
    yield _disk("cache disk", settings.cache_dir(), remedy)
    if private:
        remedy = "make room there, or set HYPERFARM_DATA to another folder"
        yield _disk("data disk", embedded.data_dir(), remedy)


def _disk(name: str, folder: Path, remedy: str) -> Check:
    """Look at the folder, or at the nearest one above it that is there."""
    try:
        there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        usage = shutil.disk_usage(there)
    except OSError as error:
        return problem(name, f"{folder} cannot be looked at: {error.strerror}", remedy)
    if not os.access(there, os.W_OK):
        return problem(name, f"{there} cannot be written by this user", remedy)
    disk = Disk(name=name, place=str(folder), free=usage.free, total=usage.total, remedy=remedy)
    return doctor_farm.check_disk(disk)

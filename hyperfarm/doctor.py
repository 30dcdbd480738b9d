"""The checks of `hyperfarm doctor` about the database: each decides from facts, without asking anybody.

doctor_farm.py holds the checks about workers, trials and this host, doctor_facts.py the questions to the
database; doctor_rounds.py goes through all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hyperfarm.indexes import INDEXES
from hyperfarm.store import OLDEST_SERVER

CLOCK_TOLERANCE_S = 60.0
STANDALONE = "standalone"
REPLICA_SET = "replica set"
SHARDED = "sharded cluster"
UP = frozenset({"PRIMARY", "SECONDARY", "ARBITER"})


class Status(Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    """The farm works; something is worth a look."""
    PROBLEM = "problem"
    """The farm does not work, or not as it should, until somebody does something."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor: what was found, and what to do about it (empty: nothing)."""

    name: str
    status: Status
    text: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        return self.status is Status.OK


def good(name: str, text: str, advice: str = "") -> Check:
    return Check(name=name, status=Status.OK, text=text, advice=advice)


def warning(name: str, text: str, advice: str) -> Check:
    return Check(name=name, status=Status.WARNING, text=text, advice=advice)


def problem(name: str, text: str, advice: str) -> Check:
    return Check(name=name, status=Status.PROBLEM, text=text, advice=advice)


def counted(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ---- the server ------------------------------------------------------------------------------------------


def check_server(version: Sequence[int], name: str = "server") -> Check:
    """The server is one that we know how to speak to; `version` as MongoDB's `versionArray`."""
    told = "MongoDB " + ".".join(map(str, version[:3]))
    if tuple(version[:2]) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        return problem(
            name,
            f"{told} is too old: {oldest} or newer is needed",
            f"upgrade the server, or use another one (docker-compose.yml, `hyperfarm db start`): all other "
            f"commands refuse servers older than {oldest}",
        )
    return good(name, told)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """How the database is made up.

    `members` maps each member of a replica set to its state; None when this user may not ask. `hosts`: how
    many members the set has that hold data.
    """

    kind: str
    hosts: int = 1
    primary: str | None = None
    members: Mapping[str, str] | None = field(default_factory=dict)


def check_topology(topology: Topology) -> Check:
    """Every member of the replica set is up, and one of them is the primary."""
    name = "topology"
    if topology.kind == STANDALONE:
        return good(
            name,
            "a standalone server: waiting workers poll it, as it has no change streams; what it has confirmed "
            "survives its crash by its journal alone",
        )
    if topology.kind == SHARDED:
        return good(name, "a sharded cluster, reached through mongos")
    members = topology.members
    if members is None:
        told = f"a replica set with {counted(topology.hosts, 'member')} that hold data"
        return _primary(topology, f"{told}; how many are up this user may not ask")
    away = [f"{host} is {state.lower()}" for host, state in members.items() if state not in UP]
    told = f"a replica set with {counted(len(members), 'member')}, {len(members) - len(away)} up"
    if topology.primary and away:
        return warning(
            name,
            f"{told}, primary {topology.primary}: {'; '.join(away)}",
            "bring the others back: without a majority of its members the set takes no writes",
        )
    return _primary(topology, told)


def _primary(topology: Topology, told: str) -> Check:
    if topology.primary is None:
        return problem(
            "topology",
            f"{told}, no primary: it takes no writes",
            "look at rs.status() in mongosh; a majority of the members must be up and reach each other",
        )
    return good("topology", f"{told}, primary {topology.primary}")


def check_write_concern(
    given: Mapping[str, Any], default: Mapping[str, Any] | None, topology: Topology
) -> Check:
    """What the server has confirmed cannot be taken back.

    `given`: what our connection asks for (the URL's options over our own); `default`: the server's, None when
    it does not tell.
    """
    name, source = "write concern", "the connection's"
    w = given.get("w")
    if w is None and default is not None:
        w, source = default.get("w"), "the server's default"
    if w is None:
        w, source = ("majority", "MongoDB's default") if topology.kind == REPLICA_SET else (1, source)
    told = f"w: {w} ({source})"
    if w == 0:
        return problem(
            name, f"{told}: no write is confirmed, and none can be relied on", "remove w=0 from the URL"
        )
    if isinstance(w, int) and topology.kind == REPLICA_SET and 2 * w <= topology.hosts:
        return warning(
            name,
            f"{told} on {topology.hosts} members that hold data: an election may take a stored result back, "
            "and its trial is run again",
            "use w=majority: remove w from the URL, or set the server's default with setDefaultRWConcern",
        )
    if given.get("j") is False:
        return warning(
            name,
            f"{told}, without the journal: a crash of the server may take stored results back",
            "remove journal=false from the URL",
        )
    return good(name, told)


def check_indexes(present: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Check:
    """Each of our indexes is there, and is what we mean; `present[collection]` as pymongo's `index_information`."""
    name = "indexes"
    missing, other, total = [], [], 0
    for collection, wanted in INDEXES.items():
        for model in wanted:
            total += 1
            index = model.document
            found = present.get(collection, {}).get(index["name"])
            if found is None:
                missing.append(f"{collection}.{index['name']}")
            elif _shape(found) != _shape(index):
                other.append((collection, index["name"], _shape(found)))
    if other:
        told = "; ".join(f"{where}.{which} has {shape}" for where, which, shape in other)
        drops = ", ".join(f'db["{where}"].dropIndex("{which}")' for where, which, _ in other)
        return problem(
            name,
            f"under the names of hyperfarm's indexes lie others: {told}",
            f"drop them in mongosh: {drops}; the next hyperfarm command makes the right ones",
        )
    if missing and any(present.values()):
        return warning(
            name,
            f"{len(missing)} of {total} are missing: {', '.join(missing)}",
            "any other command that opens the database makes them, `hyperfarm ls` for one",
        )
    if missing:
        return good(name, "none yet, the database is empty: the first command that opens it makes them")
    return good(name, f"all {total} are there")


def _shape(index: Mapping[str, Any]) -> str:
    """Keys, uniqueness and filter of an index, in a form that can be compared and shown."""
    key = index["key"]
    keys = ", ".join(f"{part}: {way}" for part, way in (key.items() if isinstance(key, Mapping) else key))
    unique = ", unique" if index.get("unique") else ""
    only = index.get("partialFilterExpression")
    return f"{{{keys}}}{unique}" + (f" where {_plain(only)}" if only else "")


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def check_clock(ahead_s: float, error_s: float) -> Check:
    """This host's clock goes with the database's; `ahead_s`: by how much the database's is ahead."""
    name = "clock"
    bound = f"± {_span(error_s)}"
    if abs(ahead_s) - error_s <= CLOCK_TOLERANCE_S:
        return good(name, f"{_span(abs(ahead_s))} between this host and the database ({bound})")
    return warning(
        name,
        f"the database's clock is {_span(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} this host's "
        f"({bound}); leases do not depend on it, they go by the database's clock alone",
        "times in this host's logs differ by as much from those that `hyperfarm show` tells; let NTP set the "
        "clocks if that matters",
    )


def _span(seconds: float) -> str:
    return f"{max(1.0, seconds * 1000):.0f} ms" if seconds < 1 else f"{seconds:.0f} s"

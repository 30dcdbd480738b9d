"""What `hyperfarm hosts` does on one host, but for bringing it up (up.py). Each returns the host's row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hyperfarm.deploy import known_hosts
from hyperfarm.deploy.connection import Connection, Unreachable, shown_key
from hyperfarm.deploy.fleet import Row, Work
from hyperfarm.deploy.hosts_file import Host
from hyperfarm.deploy.known_hosts import KnownHosts, Verdict
from hyperfarm.deploy.remote import Remote
from hyperfarm.deploy.ssh_config import route
from hyperfarm.presence import pauses

STOP_SLACK_S = 40.0


def status(host: Host, connection: Connection) -> Row:
    """What runs there."""
    state = Remote(connection, host.workdir, host.python).ask("look")
    facts = {"python": state["python"]}
    if state["worker"] is None:
        text = "no worker runs there" if state["exists"] else "nothing of hyperfarm is there"
        return Row(host=host, ok=False, state="down", text=text, facts=facts)
    worker = state["worker"]
    return Row(
        host=host, ok=True, state="up", facts={**facts, "launch": worker["launch"], "pid": worker["pid"]}
    )


def stopping(*, now: bool, grace_s: float, purge: bool) -> Work:
    """Stop the worker; with `purge` remove the workdir."""

    def stop(host: Host, connection: Connection) -> Row:
        remote = Remote(connection, host.workdir, host.python)
        wait_s = 0.0 if now else grace_s
        ended = remote.ask("stop", grace_s=wait_s, deadline_s=wait_s + STOP_SLACK_S)
        notes = ["it had to be killed; its trials run again elsewhere"] if ended.get("killed") else []
        if purge:
            notes.append("workdir removed" if remote.ask("purge") else "there was no workdir")
        return Row(
            host=host, ok=True, state="down" if ended["was"] is None else "stopped", text="; ".join(notes)
        )

    return stop


def tailing(lines: int) -> Work:
    """Read the end of the worker's log."""

    def tail(host: Host, connection: Connection) -> Row:
        text = Remote(connection, host.workdir, host.python).ask("tail", lines=lines)
        return Row(host=host, ok=True, state="log", text=text)

    return tail


def executing(command: str, timeout_s: float) -> Work:
    """Run a shell command."""

    def execute(host: Host, connection: Connection) -> Row:
        ran = connection.run(command, deadline_s=timeout_s)
        said = "\n".join(part for part in (ran.out, ran.err) if part)
        return Row(host=host, ok=ran.code == 0, state=f"exit {ran.code}", text=said)

    return execute


def pushing(data: bytes, target: str) -> Work:
    """Write a file."""

    def put(host: Host, connection: Connection) -> Row:
        connection.put(data, target.removeprefix("~/"))
        return Row(host=host, ok=True, state="pushed", text=f"{len(data)} bytes")

    return put


def checking_key(accept_new: bool) -> Callable[[Host], Row]:
    """Compare the key that the host shows with the known ones; with `accept_new` pin one that is new."""

    def check(host: Host) -> Row:
        way = route(host.address, host.jump)
        hops = [way.jump, way] if way.jump else [way]
        for hop in hops:
            key = shown_key(hop)
            shown = f"{known_hosts.kind_of(key)} {known_hosts.fingerprint(key)}"
            verdict, where = KnownHosts(hop.known_hosts).check(hop.known_as, key)
            if verdict is Verdict.UNKNOWN and accept_new:
                known_hosts.pin(hop.known_hosts[0], hop.known_as, key)
            elif verdict is Verdict.UNKNOWN:
                raise Unreachable(f"not known yet: {hop.known_as} shows {shown}; --accept-new adds it")
            elif verdict is not Verdict.KNOWN:
                raise Unreachable(f"{verdict.value.upper()}: {hop.known_as} shows {shown}; see {where}")
        return Row(host=host, ok=True, state="added" if verdict is Verdict.UNKNOWN else "known", text=shown)

    return check


def with_worker(row: Row, worker: dict[str, Any] | None) -> Row:
    """The row with what the worker itself says in the database; without that, the host is not up."""
    if not row.ok or row.host.worker_command is not None:
        return row
    if worker is None:
        text = "its worker runs, but has not registered in the database; see: hyperfarm hosts logs"
        return replace(row, ok=False, state="silent", text="; ".join(filter(None, [row.text, text])))
    devices = worker.get("devices")
    told = {
        "slots": worker.get("slots"),
        "devices": ",".join(devices) if devices else "-",
        "versions": (worker.get("versions") or {}).get("hyperfarm"),
        "busy": worker.get("busy"),
    }
    notes = [row.text] if row.text else []
    notes += [
        f"does not serve {one.get('exp_key')}: {one.get('reason')}" for one in worker.get("refused") or ()
    ]
    notes += pauses([worker])
    state = "draining" if worker.get("draining") else row.state
    return replace(row, state=state, text="; ".join(notes), facts={**row.facts, **told})

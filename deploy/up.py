"""Bringing one host up: make it what hosts.txt and the goods say, and touch nothing that is so already."""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyperfarm.deploy.connection import Connection
from hyperfarm.deploy.fleet import Row
from hyperfarm.deploy.goods import Goods, digest
from hyperfarm.deploy.hosts_file import Host
from hyperfarm.deploy.remote import HostRefused, Remote

INSTALL_S, STOP_SLACK_S = 900.0, 40.0
CLOCK_NOTED_S, CLOCK_REFUSED_S = 5.0, 300.0
FOLDERS = {"CONFIG": "config", "CACHE": "cache", "DATA": "data"}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How workers are to run.

    `options` go to `hyperfarm worker` as they are. A worker that must be restarted may finish its trials for
    `grace_s` seconds.
    """

    options: tuple[str, ...] = ()
    systemd: bool = False
    grace_s: float = 60.0
    restart: bool = False


def bring_up(host: Host, connection: Connection, goods: Goods, wish: Wish) -> Row:
    """Bring one host up. Raises HostRefused or Unreachable with the reason why it is not.

    The row's facts hold `launch`, by which its worker is found in the database, and `changed`, what was done.
    """
    remote = Remote(connection, host.workdir, host.python)
    before = time.time()
    state = remote.ask("look")
    notes = _clock(state["clock"] - (before + time.time()) / 2)
    folder = remote.ask("prepare", systemd=wish.systemd)
    worker, changed = state["worker"], []
    argv, env = command(host, wish)
    runs = (argv, env, wish.systemd)
    stale = worker is not None and (worker["argv"], worker["env"], worker["systemd"]) != runs
    different = {
        name: data for name, data in goods.files(folder).items() if digest(data) != state["config"].get(name)
    }
    install = host.worker_command is None and not _is_installed(state, goods)
    if worker and (stale or different or install or wish.restart):
        remote.ask("stop", grace_s=wish.grace_s, deadline_s=wish.grace_s + STOP_SLACK_S)
        worker = None
        changed.append("stopped")
    for name, data in different.items():
        connection.put(data, f"{folder}/config/{name}")
        changed.append(name)
    if install:
        _install(remote, folder, goods, state)
        changed.append("installed")
    if host.worker_command is None:
        _must_reach(connection, folder)
        notes += _python_note(state["python"])
    if worker is None:
        launch = uuid.uuid4().hex
        worker = remote.ask("start", argv=argv, env=env, launch=launch, systemd=wish.systemd)
        changed.append("started")
    facts = {"launch": worker["launch"], "pid": worker["pid"], "changed": changed, "python": state["python"]}
    return Row(host=host, ok=True, state="started" if changed else "up", text="; ".join(notes), facts=facts)


def command(host: Host, wish: Wish) -> tuple[list[str], dict[str, str]]:
    """The command of a host's worker, and its environment; `{folder}` in both stands for the workdir."""
    env = {f"HYPERFARM_{name}": f"{{folder}}/{place}" for name, place in FOLDERS.items()}
    if host.worker_command is not None:
        return ["/bin/sh", "-c", host.worker_command], env
    slots = "auto" if host.slots is None else str(host.slots)
    devices = "auto" if host.devices is None else ",".join(host.devices) or "none"
    own = ["--name", host.name, "--slots", slots, "--devices", devices]
    return ["{folder}/venv/bin/hyperfarm", "worker", *own, *wish.options], env


def _is_installed(state: dict[str, Any], goods: Goods) -> bool:
    installed = dict(state["installed"] or {})
    installed.pop("packages", None)
    return installed == goods.install(state["python"])


def _install(remote: Remote, folder: str, goods: Goods, state: dict[str, Any]) -> None:
    """Bring what pip needs, and have the environment made."""
    connection, incoming = remote.connection, f"{folder}/incoming"
    there = set(connection.run(f"ls -- {shlex.quote(incoming)}").out.split())
    for path in goods.wheelhouse:
        if path.name not in there:
            connection.put(path.read_bytes(), f"{incoming}/{path.name}", INSTALL_S)
    connection.put(goods.wheel, f"{incoming}/{goods.wheel_name}")
    if goods.requirements:
        connection.put(goods.requirements, f"{incoming}/requirements.txt")
    remote.ask(
        "install",
        deadline_s=INSTALL_S,
        wanted=goods.install(state["python"]),
        wheel=goods.wheel_name,
        requirements="requirements.txt" if goods.requirements else "",
        no_index=bool(goods.wheelhouse),
    )


def _must_reach(connection: Connection, folder: str) -> None:
    """Raise HostRefused unless the host's worker will reach the database."""
    python, config = (
        shlex.quote(f"{folder}/venv/bin/python"),
        shlex.quote(f"HYPERFARM_CONFIG={folder}/config"),
    )
    ran = connection.run(f"env {config} {python} -m hyperfarm.deploy.reach")
    if ran.code != 0:
        raise HostRefused(ran.out or f"its hyperfarm does not run: {ran.err[-200:]}")


def _clock(ahead_s: float) -> list[str]:
    """Notes about a host's clock. Raises HostRefused when it is too wrong for certificates and logs."""
    text = f"its clock is {abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'behind'}"
    if abs(ahead_s) > CLOCK_REFUSED_S:
        raise HostRefused(f"{text}: set it (timedatectl set-ntp true)")
    return [text] if abs(ahead_s) > CLOCK_NOTED_S else []


def _python_note(version: str) -> list[str]:
    ours, theirs = "{}.{}".format(*sys.version_info[:2]), ".".join(version.split(".")[:2])
    return [] if ours == theirs else [f"Python {theirs} there runs no code of Python {ours} here"]


def launches(rows: Sequence[Row]) -> dict[str, Row]:
    """The rows of hosts whose worker should appear in the database, by how it is found there."""
    return {row.facts["launch"]: row for row in rows if row.ok and row.host.worker_command is None}

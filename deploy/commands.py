"""`hyperfarm hosts`: workers on many machines, over SSH."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperfarm import settings
from hyperfarm.cli_options import mongo_option
from hyperfarm.errors import HyperfarmError, UsageError

if TYPE_CHECKING:
    from hyperfarm.deploy.fleet import Row
    from hyperfarm.deploy.hosts_file import Host

DEFAULT_PARALLEL = 100
REGISTER_S, LOOK_S = 45.0, 0.3
GRACE_S = 60.0
LOG_LINES = 20


def host_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which hosts, how many at a time."""
    options = [
        click.option("-h", "--hosts", "file", type=click.Path(path_type=Path), default="hosts.txt",
                     show_default=True, help="The list of hosts."),
        click.option("--only", multiple=True, metavar="PATTERN", help="Only hosts of this name (gpu*) or label."),
        click.option("--parallel", type=click.IntRange(1, 1000), default=DEFAULT_PARALLEL, show_default=True,
                     help="How many hosts to work on at a time."),
        click.option("--ask-password", is_flag=True, help="Ask once for a password, for hosts that take no key."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["--help"]})
def hosts() -> None:
    """Start, look after and stop workers on many machines, over SSH.

    The machines stand in hosts.txt, one on a line: [user@]host[:port] key=value ... Keys: slots, devices, python,
    workdir, jump, labels, worker_command. ~/.ssh/config and the SSH agent are used; host keys are checked.

    \b
    Example:
      hyperfarm hosts keys -h hosts.txt --accept-new
      hyperfarm hosts up -h hosts.txt
      hyperfarm hosts status -h hosts.txt
      hyperfarm hosts down -h hosts.txt
    """


def goods_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the hosts get, and how their workers run."""
    options = [
        mongo_option,
        click.option("--requirements", type=click.Path(path_type=Path),
                     help="What your objective imports: a requirements.txt."),
        click.option("--wheelhouse", type=click.Path(path_type=Path, file_okay=False, exists=True),
                     help="A folder of wheels, for hosts without an index (see: hyperfarm hosts wheelhouse)."),
        click.option("--systemd", is_flag=True,
                     help="Run workers as units of the users' systemd: they come back at boot."),
        click.option("--grace", "grace_s", type=click.FloatRange(0), default=GRACE_S, show_default=True,
                     help="Seconds that trials get to finish when a worker must be restarted."),
        click.option("--dry-run", is_flag=True, help="Show the hosts as they are understood; connect to none."),
        click.argument("worker_options", nargs=-1, type=click.UNPROCESSED),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@hosts.command()
@host_options
@goods_options
def up(**given: Any) -> None:
    """Make every host a running worker; what is so already stays untouched.

    Options for the workers themselves go behind two dashes:

    \b
      hyperfarm hosts up -h hosts.txt -- --exp-key digits --trial-timeout 600
    """
    _bring_up(restart=False, **given)


@hosts.command()
@host_options
@goods_options
def restart(**given: Any) -> None:
    """Like up, but every worker is stopped first: its trials finish within --grace, or go back to the queue."""
    _bring_up(restart=True, **given)


def _bring_up(
    *,
    restart: bool,
    file: Path,
    only: tuple[str, ...],
    parallel: int,
    ask_password: bool,
    mongo: str | None,
    requirements: Path | None,
    wheelhouse: Path | None,
    systemd: bool,
    grace_s: float,
    dry_run: bool,
    worker_options: tuple[str, ...],
) -> None:
    chosen = _chosen(file, only)
    from hyperfarm.deploy import fleet, goods, report, up

    wish = up.Wish(options=worker_options, systemd=systemd, grace_s=grace_s, restart=restart)
    if dry_run:
        report.plan(chosen, wish)
        return
    url = _url(mongo)
    if goods.is_local(url):
        click.echo(
            "hyperfarm: the database's address names this machine; on each host it means the host", err=True
        )
    brought = goods.collect(url, requirements, wheelhouse)
    rows = fleet.each(
        chosen,
        lambda host, connection: up.bring_up(host, connection, brought, wish),
        parallel=parallel,
        password=_password(ask_password),
        tell=report.progress,
    )
    _end(_registered(rows, url))


@hosts.command()
@host_options
@mongo_option
def status(file: Path, only: tuple[str, ...], parallel: int, ask_password: bool, mongo: str | None) -> None:
    """Show what runs on each host."""
    from hyperfarm.deploy import fleet, tasks

    rows = fleet.each(_chosen(file, only), tasks.status, parallel=parallel, password=_password(ask_password))
    _end(_known(rows, settings.mongo_url(mongo)))


@hosts.command()
@host_options
@click.option("--now", is_flag=True, help="Give running trials back to the queue at once.")
@click.option("--grace", "grace_s", type=click.FloatRange(0), default=GRACE_S, show_default=True,
              help="Seconds that running trials get to finish, no more than the workers' own --grace.")  # fmt: skip
@click.option("--purge", is_flag=True, help="Remove the hosts' workdir as well.")
def down(
    file: Path,
    only: tuple[str, ...],
    parallel: int,
    ask_password: bool,
    now: bool,
    grace_s: float,
    purge: bool,
) -> None:
    """Stop the workers: running trials finish, or go back to the queue with their checkpoints."""
    from hyperfarm.deploy import fleet, report, tasks

    chosen = _chosen(file, only)
    stop = tasks.stopping(now=now, grace_s=grace_s, purge=purge)
    _end(fleet.each(chosen, stop, parallel=parallel, password=_password(ask_password), tell=report.progress))


@hosts.command()
@host_options
@click.option("-n", "--lines", type=click.IntRange(1, 100_000), default=LOG_LINES, show_default=True)
def logs(file: Path, only: tuple[str, ...], parallel: int, ask_password: bool, lines: int) -> None:
    """Print the end of each worker's log."""
    from hyperfarm.deploy import fleet, report, tasks

    chosen = _chosen(file, only)
    _end_printed(
        fleet.each(chosen, tasks.tailing(lines), parallel=parallel, password=_password(ask_password)), report
    )


@hosts.command("exec")
@host_options
@click.option("--timeout", "timeout_s", type=click.FloatRange(1), default=600.0, show_default=True,
              help="Seconds that the command may take.")  # fmt: skip
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    file: Path,
    only: tuple[str, ...],
    parallel: int,
    ask_password: bool,
    timeout_s: float,
    command: tuple[str, ...],
) -> None:
    """Run a shell command on every host, and print what it says."""
    from hyperfarm.deploy import fleet, report, tasks

    work = tasks.executing(" ".join(command), timeout_s)
    rows = fleet.each(_chosen(file, only), work, parallel=parallel, password=_password(ask_password))
    _end_printed(rows, report)


@hosts.command()
@host_options
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target")
def push(
    file: Path, only: tuple[str, ...], parallel: int, ask_password: bool, source: Path, target: str
) -> None:
    """Bring a file to every host, whole or not at all: SOURCE here, TARGET there (from the home)."""
    from hyperfarm.deploy import fleet, tasks

    work = tasks.pushing(source.read_bytes(), target)
    _end(fleet.each(_chosen(file, only), work, parallel=parallel, password=_password(ask_password)))


@hosts.command()
@host_options
@click.option("--accept-new", is_flag=True, help="Add the keys of hosts that are not known yet.")
def keys(file: Path, only: tuple[str, ...], parallel: int, ask_password: bool, accept_new: bool) -> None:
    """Show the hosts' keys, and whether they are the known ones. A changed key is never accepted."""
    from hyperfarm.deploy import fleet, tasks

    del ask_password
    _end(fleet.without_login(_chosen(file, only), tasks.checking_key(accept_new), parallel=parallel))


@hosts.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--requirements", type=click.Path(path_type=Path), help="What your objective imports: a requirements.txt."
)
@click.option("--python", metavar="X.Y", help="The hosts' Python, if it is another one than this.")
@click.option(
    "--platform", metavar="TAG", help="The hosts' platform, such as manylinux2014_x86_64, if it is another."
)
def wheelhouse(folder: Path, requirements: Path | None, python: str | None, platform: str | None) -> None:
    """Fetch every wheel that the hosts need into FOLDER, for `up --wheelhouse FOLDER`."""
    from hyperfarm.deploy import wheelhouse

    wheels = wheelhouse.build(folder, requirements, python, platform)
    size = sum(one.stat().st_size for one in wheels)
    click.echo(
        f"{len(wheels)} wheels, {size >> 20} MB in {folder}; now: hyperfarm hosts up --wheelhouse {folder}"
    )


def _chosen(file: Path, only: Iterable[str]) -> list[Host]:
    try:
        import pssh  # noqa: F401
    except ImportError:
        raise UsageError("this needs parallel-ssh: pip install 'hyperfarm[deploy]'") from None
    from hyperfarm.deploy import hosts_file

    return hosts_file.select(hosts_file.read(file), only)


def _url(mongo: str | None) -> str:
    url = settings.mongo_url(mongo)
    if url is None:
        raise UsageError("the hosts need a MongoDB that they reach: give --mongo URL, or set HYPERFARM_MONGO")
    return url


def _password(wanted: bool) -> str | None:
    if not wanted:
        return None
    if not sys.stdin.isatty():
        raise UsageError("--ask-password asks on a terminal, and there is none; use a key or an agent")
    return str(click.prompt("Password for the hosts", hide_input=True, err=True))


def _registered(rows: Sequence[Row], url: str) -> list[Row]:
    """Wait until the workers of these rows are in the database, and add what they say there."""
    from hyperfarm.deploy import tasks, up
    from hyperfarm.store import Store

    waiting = up.launches(rows)
    found: dict[str, Any] = {}
    if waiting:
        store = Store.open(url)
        deadline = time.monotonic() + REGISTER_S
        while len(found) < len(waiting) and time.monotonic() < deadline:
            found = {one["launch"]: one for one in store.live_workers() if one.get("launch") in waiting}
            time.sleep(LOOK_S if len(found) < len(waiting) else 0)
        store.close()
    return [tasks.with_worker(row, found.get(row.facts.get("launch", ""))) for row in rows]


def _known(rows: Sequence[Row], url: str | None) -> list[Row]:
    """Add what the database knows of the workers of these rows; without it the hosts' own word must do."""
    from hyperfarm.deploy import tasks
    from hyperfarm.store import Store

    try:
        store = Store.open(url or _url(url))
    except HyperfarmError as error:
        click.echo(f"hyperfarm: what the workers say is not known: {error}", err=True)
        return list(rows)
    found = {one.get("launch"): one for one in store.live_workers()}
    store.close()
    known = [row.facts.get("launch") for row in rows]
    return [
        tasks.with_worker(row, found.get(one)) if one else row for row, one in zip(rows, known, strict=True)
    ]


def _end(rows: Sequence[Row]) -> None:
    """Print the table, and leave with the exit code."""
    from hyperfarm.deploy import fleet, report

    report.table(rows)
    sys.exit(fleet.exit_code(rows))


def _end_printed(rows: Sequence[Row], report: Any) -> None:
    from hyperfarm.deploy import fleet

    report.outputs(rows)
    sys.exit(fleet.exit_code(rows))

"""One campaign: a search of known answer under a seeded nemesis, brought to its end, and its books balanced."""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bson import json_util

from hyperfarm.errors import HyperfarmError
from hyperfarm.jobs import JobState
from hyperfarm.retry import patiently
from hyperfarm.store import Store
from tests.chaos import objective, outcome
from tests.chaos.blob_books import check_blobs
from tests.chaos.books import Finding, Terms, balance, check_resumed
from tests.chaos.cluster import Cluster
from tests.chaos.disk import Disk
from tests.chaos.farm import COMMAND, EXP_KEY, SKEW_S, Farm, Program, clean_environment, wrong_clock
from tests.chaos.faults import World, resume_all
from tests.chaos.journal import Journal
from tests.chaos.leftovers import check_collected, check_processes, check_scratch
from tests.chaos.nemesis import Nemesis, plan

log = logging.getLogger("chaos")
TOPOLOGIES = ("three", "one", "three", "standalone")
"""By seed: a replica set of three is what people run."""
DATABASE = "farm"
WORKERS, SLOTS, SKEWED = 3, 2, 1
LEASE_S = 4.0
GRACE_S = 5.0
TRIALS_PER_MINUTE = 70
STUCK_S = 120.0 + LEASE_S
"""The healed farm may take so long for the next trial to finish; the machine may be a slow one."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What is to be done. `out` gets the JSON and, if something is found, the logs."""

    seed: int
    minutes: float
    out: Path
    topology: str
    max_evals: int
    keep: bool = False

    @property
    def name(self) -> str:
        return f"seed{self.seed}-{self.topology}"


def make(seed: int, minutes: float, out: Path, topology: str | None = None, keep: bool = False) -> Campaign:
    """A campaign with what the seed decides filled in."""
    chosen = topology or TOPOLOGIES[seed % len(TOPOLOGIES)]
    budget = max(10, round(minutes * TRIALS_PER_MINUTE))
    return Campaign(seed=seed, minutes=minutes, out=out, topology=chosen, max_evals=budget, keep=keep)


def carry_out(campaign: Campaign) -> outcome.Outcome:
    """Run the campaign; whatever happens, nothing that it started is left."""
    folder = campaign.out.absolute() / campaign.name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    (folder / "journal").mkdir()
    mark = uuid.uuid4().hex
    began = time.monotonic()
    with _logged(folder / "logs" / "campaign.log"):
        env = clean_environment(mark, folder)
        with contextlib.ExitStack() as stack:
            disks = [stack.enter_context(Disk(folder / f"host{number}" / "tmp")) for number in range(WORKERS)]
            cluster = stack.enter_context(Cluster(campaign.topology, folder / "mongo", env))
            farm = stack.enter_context(_farm(campaign, folder, cluster.url(DATABASE), env, mark))
            world = World(cluster=cluster, farm=farm, disks=disks, database=DATABASE)
            done = _rage_and_settle(campaign, folder, world)
        done.findings += check_processes(mark)
        done.seconds = round(time.monotonic() - began, 1)
    _put_away(campaign, folder, done)
    return done


def _farm(campaign: Campaign, folder: Path, url: str, env: dict[str, str], mark: str) -> Farm:
    """The controller and the supervisors, one of them with its clock ten minutes off."""
    shutil.copy(objective.__file__, folder / "objective.py")
    env = env | {objective.JOURNAL: str(folder / "journal")}
    common = ["--mongo", url, "--exp-key", EXP_KEY]
    run = ["run", "objective.py", *common, "--max-evals", str(campaign.max_evals), "--workers", "0"]
    controller = Program(
        name="controller",
        command=[*COMMAND, *run, "--seed", str(campaign.seed)],
        folder=folder,
        env=env | {"HYPERFARM_CACHE": str(folder / "cache")},
        log=folder / "logs" / "controller.log",
        sign_of_life=f"/{campaign.max_evals} done",
        ends_by_itself=True,
    )
    dice = random.Random(campaign.seed)
    skew = wrong_clock(dice.choice((-SKEW_S, SKEW_S)))
    workers = []
    for number in range(WORKERS):
        host = folder / f"host{number}"
        own = {"TMPDIR": str(host / "tmp"), "HYPERFARM_CACHE": str(host / "cache")}
        options = ["--slots", str(SLOTS), "--lease", str(LEASE_S), "--grace", str(GRACE_S)]
        workers.append(
            Program(
                name=f"worker{number}",
                command=[*COMMAND, "worker", *common, *options],
                folder=host,
                env=env | own | (skew if number == SKEWED else {}),
                log=folder / "logs" / f"worker{number}.log",
                sign_of_life=f": {SLOTS} slots",
            )
        )
    return Farm(controller, workers, mark)


def _rage_and_settle(campaign: Campaign, folder: Path, world: World) -> outcome.Outcome:
    """Let the nemesis rage, heal all, wait for the end of the search, stop the workers, balance the books."""
    nemesis = Nemesis(world, plan(campaign.seed, campaign.minutes * 60, campaign.topology, WORKERS))
    nemesis.run()
    log.info("the faults are over; healing")
    resume_all(world)
    world.cluster.heal()
    found = [Finding(kind="late", text=text) for text in world.late]
    found += [Finding(kind="campaign", text=text) for text in nemesis.troubles]
    if not world.cluster.replicated:
        # What the controller saw finished may be lost again: a killed standalone forgets the last 100 ms.
        world.farm.controller.wanted = True
    settled_s, stuck = _settle(world)
    found += stuck
    log.info("stopping the workers")
    found += [
        Finding(kind="late", text=f"{name} did not end after SIGTERM") for name in world.farm.stop_workers()
    ]
    found += check_processes(world.farm.mark, but=_servers(world))
    found += check_scratch([disk.path for disk in world.disks])
    found += outcome.died(world.farm.programs)
    return _balance(campaign, folder, world, nemesis, found, settled_s)


def _settle(world: World) -> tuple[float, list[Finding]]:
    """Wait for the end of the search; it is stuck when no trial has finished for STUCK_S seconds."""
    healed = progress = time.monotonic()
    finished = -1
    url = world.cluster.url(DATABASE)
    with contextlib.closing(patiently(lambda: Store.open(url, app="campaign"))) as store:
        while not world.farm.is_complete and time.monotonic() < progress + STUCK_S:
            count = patiently(lambda: _finished(store))
            if count > finished:
                finished, progress = count, time.monotonic()
            world.stop.wait(0.5)
    settled_s = round(time.monotonic() - healed, 1)
    if world.farm.is_complete:
        return settled_s, []
    for program in world.farm.programs:
        program.signal(signal.SIGABRT)  # All stacks go to the logs.
    text = f"no trial finished for {STUCK_S:.0f} s after the faults, and the search is not complete"
    return settled_s, [Finding(kind="stuck", text=text)]


def _finished(store: Store) -> int:
    return len(store.find_jobs(EXP_KEY, (JobState.DONE, JobState.ERROR), hide=("result", "misc")))


def _servers(world: World) -> set[int]:
    return {member.process.pid for member in world.cluster.members if member.process is not None}


def _balance(
    campaign: Campaign,
    folder: Path,
    world: World,
    nemesis: Nemesis,
    found: list[Finding],
    settled_s: float,
) -> outcome.Outcome:
    terms = Terms(
        exp_key=EXP_KEY,
        max_evals=campaign.max_evals,
        lossy=campaign.topology == "standalone",
        disks_filled=bool(nemesis.counts["disk full"] or nemesis.counts["no space for blobs"]),
    )
    url = world.cluster.url(DATABASE)
    journal = Journal(folder / "journal")
    store = patiently(lambda: Store.open(url, app="campaign"))
    try:
        found += balance(store, journal, terms)
        found += check_resumed(journal, terms)
        found += check_blobs(store, journal, terms)
        jobs = store.find_jobs(EXP_KEY)
        found += check_collected(store, url, world.farm.controller.env)
    except HyperfarmError as error:
        log.exception("the books cannot be read")
        found.append(Finding(kind="unreadable", text=f"{type(error).__name__}: {error}"))
        jobs = []
    finally:
        store.close()
    (folder / "logs" / "jobs.json").write_text(json_util.dumps(jobs, indent=1))
    return outcome.Outcome(
        seed=campaign.seed,
        topology=campaign.topology,
        minutes=campaign.minutes,
        max_evals=campaign.max_evals,
        settled_s=settled_s,
        trials=sum(job["state"] in (2, 3) for job in jobs),
        executions=len(journal.executions),
        faults=dict(sorted(nemesis.counts.items())),
        observed=outcome.observe(jobs, world.farm.programs, journal),
        self_exits=[asdict(one) for program in world.farm.programs for one in program.exits],
        disks="tmpfs" if all(disk.is_mounted for disk in world.disks) else "file size limit",
        findings=found,
    )


@contextlib.contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Write what the campaign itself does into `file`."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _put_away(campaign: Campaign, folder: Path, done: outcome.Outcome) -> None:
    """Write the JSON; keep logs and journal only when there is something to look into."""
    done.write(campaign.out / f"{campaign.name}.json")
    for log_file in (folder / "mongo").glob("*.log"):
        shutil.move(log_file, folder / "logs" / log_file.name)
    if campaign.keep:
        return
    for part in [folder] if not done.findings else [folder / "mongo", *folder.glob("host*")]:
        shutil.rmtree(part, ignore_errors=True)

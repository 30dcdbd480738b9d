"""What goes wrong and when: a plan that the seed alone decides, and the thread that carries it out."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

from tests.chaos.faults import KINDS, NEEDS_REPLICATION, NothingToDo, World

log = logging.getLogger("chaos")
MEAN_GAP_S = 2.2
JOIN_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A fault: when after the start, what kind, on which target, for how long, with which dice."""

    at_s: float
    kind: str
    target: int
    lasts_s: float
    seed: int

    @property
    def resource(self) -> str:
        """What no other fault may touch meanwhile."""
        return f"{KINDS[self.kind].on} {self.target}"


def plan(seed: int, seconds: float, topology: str, workers: int) -> list[Planned]:
    """Return the faults of a campaign; the same for the same arguments."""
    dice = random.Random(f"{seed} {topology}")
    kinds = [kind for kind in KINDS if topology != "standalone" or kind not in NEEDS_REPLICATION]
    targets = {"worker": workers, "disk": workers, "mongod": 3 if topology == "three" else 1}
    planned = []
    at_s = 3.0
    while at_s < seconds:
        kind = dice.choices(kinds, [KINDS[kind].weight for kind in kinds])[0]
        longest_s = KINDS[kind].longest_s
        planned.append(
            Planned(
                at_s=at_s,
                kind=kind,
                target=dice.randrange(targets.get(KINDS[kind].on, 1)),
                # Short ones and long ones, both often.
                lasts_s=min(longest_s * dice.uniform(0.05, 1.0) ** 1.5, seconds - at_s),
                seed=dice.getrandbits(32),
            )
        )
        at_s += max(0.2, dice.expovariate(1 / MEAN_GAP_S))
    return planned


class Nemesis:
    """Carries out a plan. `counts` says what was done, `troubles` what the campaign itself could not do."""

    def __init__(self, world: World, faults: list[Planned]) -> None:
        self.world, self.faults = world, faults
        self.counts: Counter[str] = Counter()
        self.troubles: list[str] = []
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Do all of it; returns when the last fault has been undone."""
        began = time.monotonic()
        threads = []
        for fault in self.faults:
            if self.world.stop.wait(max(0.0, began + fault.at_s - time.monotonic())):
                break
            with self._lock:
                if fault.resource in self._busy:
                    continue
                self._busy.add(fault.resource)
            thread = threading.Thread(target=self._carry_out, args=[fault], daemon=True, name=fault.kind)
            thread.start()
            threads.append(thread)
        deadline = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.troubles.append(f"the fault '{thread.name}' could not be undone in {JOIN_S:.0f} s")

    def _carry_out(self, fault: Planned) -> None:
        try:
            with KINDS[fault.kind].act(self.world, random.Random(fault.seed), fault.target):
                log.info("%s on %d for %.1f s", fault.kind, fault.target, fault.lasts_s)
                with self._lock:
                    self.counts[fault.kind] += 1
                self.world.stop.wait(fault.lasts_s)
            log.info("%s on %d is over", fault.kind, fault.target)
        except NothingToDo:
            pass
        except Exception as error:
            log.exception("%s on %d went wrong", fault.kind, fault.target)
            self.troubles.append(f"{fault.kind}: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._busy.discard(fault.resource)

"""The side journal that the executions of the objective keep, as the auditor reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(kw_only=True)
class Execution:
    """What one execution of the objective wrote down. `end` is None for one that was cut off."""

    id: str
    begin: Line
    end: Line | None = None
    checkpoints: list[Line] = field(default_factory=list)
    """Checkpoints in order: 'checkpointing' before each is stored, 'checkpointed' once that is confirmed."""

    @property
    def tid(self) -> int:
        return int(self.begin["tid"])

    @property
    def attempt(self) -> int:
        return int(self.begin["attempt"])


class Journal:
    """All executions of a campaign. `torn` are the files that cannot be read as a journal."""

    def __init__(self, folder: Path) -> None:
        self.executions: dict[str, Execution] = {}
        self.torn: list[str] = []
        for file in sorted(folder.glob("*.jsonl")):
            try:
                lines = [json.loads(line) for line in file.read_text().splitlines()]
                execution = _read(lines)
            except (ValueError, KeyError, IndexError) as error:
                self.torn.append(f"{file.name}: {error}")
            else:
                self.executions[execution.id] = execution

    def of(self, tid: int) -> list[Execution]:
        """The executions of a trial in the order in which they began."""
        mine = [one for one in self.executions.values() if one.tid == tid]
        return sorted(mine, key=lambda one: one.begin["at"])


def _read(lines: list[Line]) -> Execution:
    if lines[0]["event"] != "begin" or any(line["execution"] != lines[0]["execution"] for line in lines):
        raise ValueError("it does not begin with 'begin', or two executions wrote to it")
    execution = Execution(id=lines[0]["execution"], begin=lines[0])
    for line in lines[1:]:
        if line["event"] == "end":
            execution.end = line
        else:
            execution.checkpoints.append(line)
    return execution

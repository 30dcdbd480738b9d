"""What hyperopt's jobs say is to be run (`misc.cmd`): how it is signed, and how it becomes a function.

A job that hyperfarm's own search has queued names a bundle and does not need this. All others say it in one
of hyperopt's ways:

    domain_attachment NAME, driver_attachment NAME    a pickle that lies beside the experiment, in GridFS
    cpickled fn, call evaluate                        a pickle in the job itself
    token_load NAME, bandit_json evaluate NAME        the dotted name of something to import

Each of them runs code of whoever wrote it into the database. So it is only followed when the farm's secret has
signed it, or when the worker was told to trust the database (`--trust-unsigned`).
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperfarm.bundle import mac
from hyperfarm.errors import BundleError, BundleRefused

FMIN_DOMAIN = "FMinIter_Domain"
"""Under this name `fmin` leaves the objective and its space for the workers."""
ATTACHED = ("domain_attachment", "driver_attachment")
PICKLED = ("cpickled fn", "call evaluate")
NAMED = ("token_load", "bandit_json evaluate")
_COMMAND, _PAYLOAD = "cmd.json", "payload.pkl"
Function = Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a job says is to be run.

    `name` of the attachment or of the thing to import; `payload` the pickle, empty where there is none.
    """

    protocol: str
    name: str
    payload: bytes = b""

    @property
    def revision(self) -> str:
        """SHA-256 in hex of all that decides what is run."""
        head = json.dumps([self.protocol, self.name]).encode()
        return hashlib.sha256(head + b"\0" + self.payload).hexdigest()


def parse(cmd: Any) -> Command:
    """Read `misc.cmd`; an attachment's payload is still to be fetched. Raises BundleError."""
    if isinstance(cmd, (list, tuple)) and len(cmd) == 2 and isinstance(cmd[0], str):
        protocol, argument = cmd
        if protocol in (*ATTACHED, *NAMED) and isinstance(argument, str):
            return Command(protocol=protocol, name=argument)
        if protocol in PICKLED and isinstance(argument, (bytes, str)):
            data = argument.encode("latin-1") if isinstance(argument, str) else argument
            return Command(protocol=protocol, name="", payload=bytes(data))
    raise BundleError(f"its job says in misc.cmd what nobody here understands: {str(cmd)[:100]}")


def sign(secret: bytes, command: Command, exp_key: str | None) -> str:
    """The signature of a job's own command: HMAC-SHA256 in hex, bound to the experiment."""
    payload = b"" if command.protocol in ATTACHED else command.payload
    return mac(secret, b"hyperfarm command 1", payload, exp_key, json.dumps([command.protocol, command.name]))


def sign_attachment(secret: bytes, data: bytes, exp_key: str | None, name: str) -> str:
    """The signature of an attachment of the experiment: HMAC-SHA256 in hex, bound to experiment and name."""
    return mac(secret, b"hyperfarm attachment 1", data, exp_key, name)


def check_signed(
    secret: bytes, command: Command, exp_key: str | None, *, job: object, attachment: object
) -> None:
    """Return if the farm's secret has signed the command; `job` and `attachment` are the signatures found.

    fmin's own attachment needs only its own signature: every job of that experiment means it. Any other may be
    data of the user's that was never meant to be run, so the job that names it must be signed as well.
    """
    good = True
    if command.protocol in ATTACHED:
        wanted = sign_attachment(secret, command.payload, exp_key, command.name)
        good = _equal(wanted, attachment)
    if not (command.protocol == "domain_attachment" and command.name == FMIN_DOMAIN):
        good = good and _equal(sign(secret, command, exp_key), job)
    if not good:
        raise BundleRefused(
            f"its jobs ({command.protocol}) were not queued by a hyperfarm with this farm's secret, and would run "
            "code of whoever can write to the database; a worker started with --trust-unsigned runs them"
        )


def _equal(wanted: str, found: object) -> bool:
    return isinstance(found, str) and hmac.compare_digest(
        wanted.encode(), found.encode("utf-8", "surrogatepass")
    )


def save(command: Command, folder: Path) -> None:
    """Write a command for the process that is to run it."""
    (folder / _PAYLOAD).write_bytes(command.payload)
    (folder / _COMMAND).write_text(json.dumps([command.protocol, command.name]))


def is_saved(folder: Path) -> bool:
    return (folder / _COMMAND).is_file()


def saved(folder: Path) -> Command:
    """Read what `save` wrote."""
    protocol, name = json.loads((folder / _COMMAND).read_text())
    return Command(protocol=protocol, name=name, payload=(folder / _PAYLOAD).read_bytes())


def worker_function(command: Command) -> Function:
    """Load what the command means: a function of a point (`spec_from_misc`) and a Ctrl. Runs foreign code.

    Raises whatever the loading raises, BundleError when it is not what the protocol promises.
    """
    import cloudpickle

    protocol = command.protocol
    if protocol == "token_load":
        return _checked(_look_up(command.name), command)
    if protocol == "bandit_json evaluate":
        return _evaluate_of(_look_up(command.name)(), command)
    loaded = cloudpickle.loads(command.payload)
    if protocol == "driver_attachment":
        name, args, kwargs = loaded
        return _evaluate_of(_look_up(name)(*args, **kwargs), command)
    return _checked(loaded, command) if protocol == "cpickled fn" else _evaluate_of(loaded, command)


def _evaluate_of(thing: Any, command: Command) -> Function:
    return _checked(getattr(thing, "evaluate", None), command)


def _checked(function: Any, command: Command) -> Function:
    if not callable(function):
        raise BundleError(f"{command.protocol} {command.name} is nothing that can be called")
    checked: Function = function
    return checked


def _look_up(name: str) -> Any:
    """Import the longest part of a dotted name that is a module, and get the rest from it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if length == 1 or not (error.name and module.startswith(error.name)):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise BundleError("token_load names nothing")

"""What hyperopt's jobs say is to be run: read, signed, saved, and followed only when it is what was signed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hyperopt import hp
from hyperopt.base import Domain

from hyperfarm import protocols
from hyperfarm.errors import BundleError, BundleRefused
from hyperfarm.protocols import FMIN_DOMAIN, Command, parse

SECRET = b"s" * 32
DOMAIN = ["domain_attachment", FMIN_DOMAIN]


@pytest.mark.parametrize(
    ("cmd", "command"),
    [
        (DOMAIN, Command(protocol="domain_attachment", name=FMIN_DOMAIN)),
        (("driver_attachment", "mine"), Command(protocol="driver_attachment", name="mine")),
        (["cpickled fn", b"\x80\x05"], Command(protocol="cpickled fn", name="", payload=b"\x80\x05")),
        (["call evaluate", "\x80\x05"], Command(protocol="call evaluate", name="", payload=b"\x80\x05")),
        (["token_load", "a.b"], Command(protocol="token_load", name="a.b")),
        (["bandit_json evaluate", "a.b"], Command(protocol="bandit_json evaluate", name="a.b")),
    ],
)
def test_every_protocol_is_read(cmd: Any, command: Command) -> None:
    assert parse(cmd) == command


@pytest.mark.parametrize(
    "cmd", [None, "token_load", [], ["token_load"], ["token_load", 3], ["other", "x"], [1, 2], {}]
)
def test_what_nobody_understands_is_one_sentence(cmd: Any) -> None:
    with pytest.raises(BundleError, match=r"misc\.cmd"):
        parse(cmd)


def checked(command: Command, exp_key: str | None = "k", **signatures: Any) -> bool:
    given = {"job": None, "attachment": None, **signatures}
    try:
        protocols.check_signed(SECRET, command, exp_key, **given)
    except BundleRefused:
        return False
    return True


def test_a_command_is_followed_only_as_it_was_signed() -> None:
    command = parse(["cpickled fn", b"good"])
    job = protocols.sign(SECRET, command, "k")
    assert checked(command, job=job)
    with pytest.raises(BundleRefused, match="--trust-unsigned"):
        protocols.check_signed(SECRET, command, "k", job=None, attachment=None)
    assert not checked(command, job=7)
    assert not checked(command, "other", job=job)
    assert not checked(command, None, job=job)
    assert not checked(parse(["cpickled fn", b"evil"]), job=job)
    assert not checked(parse(["call evaluate", b"good"]), job=job)
    assert not checked(command, job=protocols.sign(b"t" * 32, command, "k"))


def test_fmins_attachment_needs_its_own_signature_any_other_the_jobs_too() -> None:
    domain = Command(protocol="domain_attachment", name=FMIN_DOMAIN, payload=b"good")
    attachment = protocols.sign_attachment(SECRET, b"good", "k", FMIN_DOMAIN)
    assert checked(domain, attachment=attachment)
    assert not checked(domain, "other", attachment=attachment)
    assert not checked(
        Command(protocol=domain.protocol, name=FMIN_DOMAIN, payload=b"evil"), attachment=attachment
    )
    data = Command(protocol="domain_attachment", name="data", payload=b"good")
    signed = protocols.sign_attachment(SECRET, b"good", "k", "data")
    assert not checked(data, attachment=signed), "it may be data that was never meant to be run"
    assert not checked(data, attachment=attachment, job=protocols.sign(SECRET, data, "k"))
    assert checked(data, attachment=signed, job=protocols.sign(SECRET, data, "k"))
    assert not checked(data, job=protocols.sign(SECRET, data, "k"))
    driver = Command(protocol="driver_attachment", name=FMIN_DOMAIN, payload=b"good")
    assert not checked(driver, attachment=attachment), "another protocol means another thing"


def test_a_command_comes_back_from_its_folder_and_runs(tmp_path: Path) -> None:
    command = parse(["call evaluate", cloudpickle.dumps(Domain(lambda x: x + 1, hp.uniform("x", 0, 9)))])
    assert not protocols.is_saved(tmp_path)
    protocols.save(command, tmp_path)
    assert protocols.is_saved(tmp_path)
    assert protocols.saved(tmp_path) == command
    run = protocols.worker_function(protocols.saved(tmp_path))
    assert run({"x": 4}, None)["loss"] == 5
    assert command.revision != parse(["call evaluate", b"other"]).revision


def test_names_are_looked_up_in_packages_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "round.py").write_text(
        "class Ball:\n    @staticmethod\n    def roll(spec, ctrl):\n        return spec\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert protocols.worker_function(parse(["token_load", "shapes.round.Ball.roll"]))(3, None) == 3
    with pytest.raises(ModuleNotFoundError):
        protocols.worker_function(parse(["token_load", "no_such_package.f"]))
    with pytest.raises(BundleError, match="nothing that can be called"):
        protocols.worker_function(parse(["token_load", "shapes.round"]))
    (package / "broken.py").write_text("import no_such_module_either\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        protocols.worker_function(parse(["token_load", "shapes.broken.f"]))
    for name in [name for name in sys.modules if name.startswith("shapes")]:
        monkeypatch.delitem(sys.modules, name)

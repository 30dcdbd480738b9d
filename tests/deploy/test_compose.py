"""docker-compose.yml and what belongs to it, read as Compose reads them.

compose-spec.json is schema/compose-spec.json of the repository compose-spec/compose-spec, unchanged (commit 170098b).
Copyright 2020 The Compose Specification Authors, Apache License 2.0.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hyperfarm.mongod_fetch import REPLICA_SET

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docker-compose.yml").read_text()
EXAMPLE = (PROJECT / ".env.example").read_text()
FARM = PROJECT / "deploy" / "mongodb"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<rest>[^}]*)\}")
SECRETS = {"ADMIN_PASSWORD", "CONTROLLER_PASSWORD", "WORKER_PASSWORD", "EXPRESS_PASSWORD", "EXPRESS_SECRET"}
MAY_BE_EMPTY = {"WORKER_PACKAGES"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file with its variables put in, as `docker compose config` shows it."""
    values = {**example(), **dict.fromkeys(SECRETS, "secret"), "FARM_HOST": "db.example.org"}
    filled = VARIABLE.sub(lambda found: values[found["name"]], TEXT).replace("$$", "$")
    read: dict[str, Any] = yaml.safe_load(filled)
    return read


def example() -> dict[str, str]:
    """The settings in .env.example."""
    lines = [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_it_is_valid(compose: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    for document in (compose, yaml.safe_load(TEXT)):
        assert [error.message for error in validator.iter_errors(document)] == []
    assert list(validator.iter_errors({"services": {"mongodb": {"ports": 1}}})), "the schema refuses nothing"


def test_every_variable_is_explained_and_every_explained_one_is_used() -> None:
    assert {found["name"] for found in VARIABLE.finditer(TEXT)} == set(example())
    paragraphs = EXAMPLE.split("\n")
    for name in set(example()) - {"EXPRESS_PORT"}:
        line = next(number for number, text in enumerate(paragraphs) if text.startswith(f"{name}="))
        assert paragraphs[line - 1].startswith("# "), f"{name} has no explanation above it"


def test_it_refuses_to_start_with_an_empty_setting_and_says_what_to_do() -> None:
    for found in VARIABLE.finditer(TEXT):
        if found["name"] in MAY_BE_EMPTY:
            continue
        assert re.fullmatch(r":\?\w+ .*", found["rest"]), found[0]
        assert ".env" in found["rest"], found[0]


def test_no_password_has_a_default() -> None:
    assert {name for name in example() if "PASSWORD" in name or name == "EXPRESS_SECRET"} == SECRETS
    assert [name for name in SECRETS if example()[name]] == []
    assert example()["FARM_HOST"] == ""
    for service in yaml.safe_load(TEXT)["services"].values():
        for key, value in service["environment"].items():
            if re.search("(PASSWORD|SECRET)$", key):
                assert VARIABLE.fullmatch(value), f"{key} is written down"
    assert not re.search(r"://\w+:[^$@/]+@", TEXT), "a password is written down in a URL"


def test_no_secret_is_on_a_command_line(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        words = json.dumps([service.get(key) for key in ("command", "entrypoint", "healthcheck")])
        assert not re.search("secret|PASSWORD", words), name
    for script in FARM.glob("*.sh"):
        assert "PASSWORD" not in script.read_text(), script


def test_published_ports(compose: dict[str, Any]) -> None:
    """mongo-express is for this machine; MongoDB is where the user says, and nothing else is published."""
    services = compose["services"]
    assert services["mongo-express"]["ports"] == ["127.0.0.1:8081:8081"]
    assert services["mongodb"]["ports"] == ["127.0.0.1:27017:27017"]
    assert [name for name in services if "ports" in services[name]] == ["mongodb", "mongo-express"]
    assert not any("network_mode" in service for service in services.values())
    published = [
        line.strip() for line in TEXT.splitlines() if line.strip().startswith('- "') and ":8081" in line
    ]
    assert len(published) == 1
    assert published[0].startswith('- "127.0.0.1:')


def test_images_have_tags(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        _, _, tag = service["image"].partition(":")
        assert re.match(r"\d", tag), name


def test_what_is_mounted_is_there_and_shows_nobody_the_passwords(compose: dict[str, Any]) -> None:
    """The worker runs other people's code: it must not see .env."""
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source, _, target = volume.partition(":") if isinstance(volume, str) else (None, None, None)
            if source is None or source in compose["volumes"]:
                continue
            assert target.endswith(":ro"), volume
            path = PROJECT / source
            assert path.exists(), source
            assert not (PROJECT / ".env").is_relative_to(path), f"{source} holds .env"


def test_the_optional_worker_is_optional(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles", []) for name, service in compose["services"].items()}
    assert profiles == {"mongodb": [], "mongo-express": [], "worker": ["worker"]}


def test_the_replica_set_has_one_name() -> None:
    """In start.sh, in health.js and in the URLs of the docs."""
    assert f"--replSet {REPLICA_SET} " in (FARM / "start.sh").read_text()
    assert f'NAME = "{REPLICA_SET}"' in (FARM / "health.js").read_text()
    assert f"replicaSet={REPLICA_SET}" in (PROJECT / "docs" / "mongodb.md").read_text()


def test_shell_parses(compose: dict[str, Any]) -> None:
    scripts = {script.name: script.read_text() for script in FARM.glob("*.sh")}
    assert set(scripts) == {"start.sh", "worker.sh"}
    for name, service in compose["services"].items():
        kind, *words = service.get("healthcheck", {}).get("test", ["CMD"])
        if kind == "CMD-SHELL":
            scripts[name] = words[0]
    assert "mongodb" in scripts
    for name, text in scripts.items():
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.parametrize("script", ["users.js", "health.js"])
def test_javascript_parses(script: str) -> None:
    node = shutil.which("node")
    if node is None:
        assert not os.environ.get("CI")
        pytest.skip("needs node")
    subprocess.run([node, "--check", FARM / script], check=True)


def test_the_command_of_the_docs_makes_a_usable_env(tmp_path: Path) -> None:
    """Everything is set, the passwords differ, nobody else may read them, and a shell can read the file too."""
    block = re.search(r"```sh\n(umask.*?> \.env\n)", (PROJECT / "docs" / "mongodb.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / ".env.example").write_text(EXAMPLE)
    subprocess.run(["sh", "-eu"], input=block[1], text=True, cwd=tmp_path, check=True)
    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o077 == 0
    show = "set -a; . ./.env; set +a; env"
    clean = {name: value for name, value in os.environ.items() if name not in example()}
    done = subprocess.run(
        ["sh", "-euc", show], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True
    )
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert [name for name in example() if not values.get(name)] == sorted(MAY_BE_EMPTY)
    assert len({values[name] for name in SECRETS}) == len(SECRETS)
    assert all(re.fullmatch("[0-9a-f]{48}", values[name]) for name in SECRETS)

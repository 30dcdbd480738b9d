"""Where things lie: the URL that is meant, and the farm's secret, made once and for the user alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hyperfarm import settings
from hyperfarm.errors import SettingsError

MAKE = """
import pathlib, sys, time
from hyperfarm.settings import farm_secret
go, ready = map(pathlib.Path, sys.argv[1:])
ready.touch()
deadline = time.monotonic() + 30
while not go.exists():
    assert time.monotonic() < deadline
print(farm_secret().hex())
"""


def secret_path(home: Path) -> Path:
    return home / "config" / "secret"


def test_the_secret_is_made_once_by_processes_at_once(own_home: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    flags = [tmp_path / f"ready{number}" for number in range(4)]
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKE, str(go), str(flag)], stdout=subprocess.PIPE, text=True)
        for flag in flags
    ]
    while not all(flag.exists() for flag in flags):
        assert all(process.poll() is None for process in processes)
    go.touch()
    secrets = [process.communicate(timeout=30)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(secrets)) == 1
    assert len(bytes.fromhex(secrets[0])) == settings.SECRET_BYTES
    assert settings.farm_secret().hex() == secrets[0]
    assert os.listdir(own_home / "config") == ["secret"], "no temporary file is left"


def test_who_makes_the_secret_second_takes_the_first_ones(own_home: Path) -> None:
    first = settings.farm_secret()
    settings._make_secret(secret_path(own_home))  # As a process does that looked just before it was there.
    assert settings.farm_secret() == first
    assert os.listdir(own_home / "config") == ["secret"]


def test_the_secret_is_the_users_alone(own_home: Path) -> None:
    before = os.umask(0)
    try:
        secret = settings.farm_secret()
    finally:
        os.umask(before)
    file = secret_path(own_home)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert settings.farm_secret() == secret


def test_two_farms_have_two_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = settings.farm_secret()
    monkeypatch.setenv("HYPERFARM_SECRET_FILE", str(tmp_path / "else" / "key"))
    assert settings.farm_secret() != first
    assert (tmp_path / "else" / "key").is_file()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o620])
def test_a_secret_that_others_can_read_is_refused(own_home: Path, mode: int) -> None:
    settings.farm_secret()
    file = secret_path(own_home)
    before = file.read_bytes()
    file.chmod(mode)
    with pytest.raises(SettingsError, match=r"can be read by other users; .*chmod 600"):
        settings.farm_secret()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"abc", b"00" * 31, b"zz" * 32, b"\xff\xfe" * 32, b"00" * 32 + b"0"]
)
def test_a_damaged_secret_is_refused_and_left_as_it_is(own_home: Path, content: bytes) -> None:
    settings.farm_secret()
    file = secret_path(own_home)
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="is damaged"):
        settings.farm_secret()
    assert file.read_bytes() == content


def test_a_secret_that_cannot_be_read_or_written_is_told(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret_path(own_home).mkdir(parents=True, mode=0o700)
    with pytest.raises(SettingsError, match=r"cannot be read: .*secret"):
        settings.farm_secret()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYPERFARM_SECRET_FILE", str(tmp_path / "file" / "secret"))
    with pytest.raises(SettingsError, match=r"cannot be (read|written): .*secret"):
        settings.farm_secret()


def test_the_callers_url_wins_then_the_environments_then_the_files(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.mongo_url() is None
    file = own_home / "config" / "mongo-url"
    file.parent.mkdir(parents=True)
    file.write_text("\n")
    assert settings.mongo_url() is None
    file.write_text("mongodb://file/db\n")
    assert settings.mongo_url() == "mongodb://file/db"
    monkeypatch.setenv("HYPERFARM_MONGO", "mongodb://environment/db")
    assert settings.mongo_url() == "mongodb://environment/db"
    assert settings.mongo_url("mongodb://given/db") == "mongodb://given/db"
    monkeypatch.setenv("HYPERFARM_MONGO", "")
    assert settings.mongo_url("") == "mongodb://file/db"


def test_folders_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERFARM_CONFIG", str(tmp_path / "c"))
    monkeypatch.setenv("HYPERFARM_CACHE", str(tmp_path / "d"))
    assert settings.config_dir() == tmp_path / "c"
    assert settings.cache_dir() == tmp_path / "d"
    assert settings.secret_file() == tmp_path / "c" / "secret"


def test_an_unreadable_file_with_the_address_is_told_in_a_sentence(own_home):
    file = settings.config_dir() / "mongo-url"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="mongo-url"):
        settings.mongo_url()

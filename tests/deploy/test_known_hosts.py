"""Known host keys, checked against what OpenSSH's own ssh-keygen says of the same files."""

from __future__ import annotations

import base64
import subprocess
import threading
from pathlib import Path

import pytest

from hyperfarm.deploy.known_hosts import KnownHosts, Verdict, fingerprint, kind_of, known_name, pin
from hyperfarm.errors import SettingsError


def make_key(folder: Path, name: str, kind: str = "ed25519") -> str:
    """A new public key, as in known_hosts."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(folder / name)], check=True)
    return " ".join((folder / f"{name}.pub").read_text().split()[:2])


def raw(key: str) -> bytes:
    return base64.b64decode(key.split()[1])


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("keys")
    return {
        "one": make_key(folder, "one"),
        "two": make_key(folder, "two"),
        "ec": make_key(folder, "ec", "ecdsa"),
    }


def verdict(file: Path, name: str, key: str) -> Verdict:
    return KnownHosts([file]).check(name, raw(key))[0]


def test_known_unknown_changed_revoked(tmp_path: Path, keys: dict[str, str]) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"gpu1 {keys['one']}\n@revoked * {keys['ec']}\n# gpu2 {keys['one']}\n\ndamaged\n")
    assert verdict(file, "gpu1", keys["one"]) is Verdict.KNOWN
    assert verdict(file, "gpu2", keys["one"]) is Verdict.UNKNOWN
    assert KnownHosts([file]).check("gpu1", raw(keys["two"])) == (Verdict.CHANGED, f"{file}:1")
    assert verdict(file, "gpu2", keys["ec"]) is Verdict.REVOKED
    assert verdict(file, "gpu1", keys["ec"]) is Verdict.REVOKED


def test_a_key_of_another_kind_is_a_changed_key(tmp_path: Path, keys: dict[str, str]) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"gpu1 {keys['one']}\n")
    assert verdict(file, "gpu1", keys["ec"]) is Verdict.CHANGED
    assert KnownHosts([file]).kinds("gpu1") == ["ssh-ed25519"]


def test_ports_patterns_and_negation(tmp_path: Path, keys: dict[str, str]) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"[gpu1]:2222 {keys['one']}\n*.farm.org,!bad.farm.org {keys['two']}\n")
    assert verdict(file, known_name("gpu1", 2222), keys["one"]) is Verdict.KNOWN
    assert verdict(file, known_name("gpu1", 22), keys["one"]) is Verdict.UNKNOWN
    assert verdict(file, "a.farm.org", keys["two"]) is Verdict.KNOWN
    assert verdict(file, "bad.farm.org", keys["two"]) is Verdict.UNKNOWN
    assert verdict(file, known_name("GPU1", 2222), keys["one"]) is Verdict.KNOWN


@pytest.mark.parametrize("name", ["gpu1.example.org", "[gpu1.example.org]:2222", "[2001:db8::1]:22022"])
def test_hashed_names_are_found_as_openssh_finds_them(
    tmp_path: Path, keys: dict[str, str], name: str
) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"{name} {keys['one']}\nother {keys['two']}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert name not in file.read_text()
    found = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", str(file)], check=True, capture_output=True, text=True
    )
    assert keys["one"].split()[1] in found.stdout
    assert verdict(file, name, keys["one"]) is Verdict.KNOWN
    assert verdict(file, name, keys["two"]) is Verdict.CHANGED
    assert verdict(file, f"x{name}", keys["one"]) is Verdict.UNKNOWN


def test_fingerprint_and_kind_are_openssh_s(tmp_path: Path) -> None:
    for kind in ("ed25519", "ecdsa", "rsa"):
        key = make_key(tmp_path, kind, kind)
        told = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(tmp_path / f"{kind}.pub")],
            check=True,
            capture_output=True,
            text=True,
        )
        assert fingerprint(raw(key)) == told.stdout.split()[1]
        assert kind_of(raw(key)) == key.split()[0]


def test_pinning_keeps_what_is_there(tmp_path: Path, keys: dict[str, str]) -> None:
    file = tmp_path / "ssh" / "known_hosts"
    pin(file, "gpu1", raw(keys["one"]))
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text().rstrip("\n"))  # As editors leave it.
    names = [f"gpu{number}" for number in range(2, 12)]
    pins = [threading.Thread(target=pin, args=(file, name, raw(keys["two"]))) for name in names]
    for one in pins:
        one.start()
    for one in pins:
        one.join()
    assert verdict(file, "gpu1", keys["one"]) is Verdict.KNOWN
    assert all(verdict(file, name, keys["two"]) is Verdict.KNOWN for name in names)
    found = subprocess.run(["ssh-keygen", "-F", "gpu7", "-f", str(file)], check=False, capture_output=True)
    assert found.returncode == 0


def test_files_that_are_missing_or_unreadable(tmp_path: Path, keys: dict[str, str]) -> None:
    assert verdict(tmp_path / "nowhere", "gpu1", keys["one"]) is Verdict.UNKNOWN
    with pytest.raises(SettingsError, match="cannot be read"):
        KnownHosts([tmp_path])

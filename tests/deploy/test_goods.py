"""What the hosts are given: the wheel of this very code, and the address of the database without a loose end."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hyperfarm
from hyperfarm.deploy import goods, wheel
from hyperfarm.errors import SettingsError, UsageError

URL = "mongodb://me:p%40ss@db.example.org/farm"


def test_the_wheel_is_this_code_and_runs(tmp_path: Path) -> None:
    name, content = wheel.build()
    assert wheel.build() == (name, content)
    file = tmp_path / name
    file.write_bytes(content)
    place = tmp_path / "place"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        place,
        file,
    ]
    subprocess.run(command, check=True, capture_output=True)
    root = Path(hyperfarm.__file__).parent
    installed = {path.relative_to(place / "hyperfarm") for path in (place / "hyperfarm").rglob("*.py")}
    here = {path.relative_to(root) for path in (*root.glob("*.py"), *root.glob("*/*.py"))}
    assert installed == here
    probe = f"import sys; sys.path.insert(0, {str(place)!r}); import hyperfarm.worker.child as c; print(c.__file__)"
    run = subprocess.run([sys.executable, "-I", "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(str(place))
    with zipfile.ZipFile(file) as archive:
        metadata = archive.read(next(one for one in archive.namelist() if one.endswith("METADATA"))).decode()
    assert "Requires-Dist: pymongo" in metadata
    assert "Requires-Dist: psutil" in metadata


def test_the_secret_and_the_address_are_files_of_the_configuration() -> None:
    brought = goods.collect(URL, None, None)
    files = brought.files("/home/me/.hyperfarm")
    assert sorted(files) == ["mongo-url", "secret"]
    assert files["mongo-url"].decode().startswith("mongodb://me:p%40ss@db.example.org/farm")
    assert len(bytes.fromhex(files["secret"].decode())) == 32
    assert "p%40ss" not in repr(brought)


def test_tls_files_go_along(tmp_path: Path) -> None:
    ca, client = tmp_path / "my ca.pem", tmp_path / "client.pem"
    ca.write_bytes(b"the authority")
    client.write_bytes(b"the certificate and its key")
    quoted = str(ca).replace(" ", "%20")
    brought = goods.collect(f"{URL}?tls=true&tlsCAFile={quoted}&tlsCertificateKeyFile={client}", None, None)
    files = brought.files("/home/it is me/.hyperfarm")
    assert files["tlsCAFile.pem"] == b"the authority"
    assert files["tlsCertificateKeyFile.pem"] == b"the certificate and its key"
    assert "tlsCAFile=/home/it%20is%20me/.hyperfarm/config/tlsCAFile.pem&" in files["mongo-url"].decode()
    with pytest.raises(SettingsError, match=r"nowhere\.pem' names a file that cannot be read: \w"):
        goods.collect(f"{URL}?tls=true&tlsCAFile={tmp_path}/nowhere.pem", None, None)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("mongodb://localhost/farm", True),
        ("mongodb://me:pw@127.0.0.1:27017/farm", True),
        ("mongodb://[::1]:27017/farm", True),
        ("mongodb://db1,localhost:27018/farm", True),
        ("mongodb://db.example.org/localhost", False),
        ("mongodb://localhost.example.org/farm", False),
        ("mongodb+srv://cluster.example.org/farm", False),
    ],
)
def test_an_address_that_means_another_machine_on_every_host(url: str, local: bool) -> None:
    assert goods.is_local(url) is local


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        goods.collect(URL, tmp_path / "requirements.txt", None)


def test_what_an_environment_is_made_of(tmp_path: Path) -> None:
    needs = tmp_path / "requirements.txt"
    needs.write_text("scikit-learn\n")
    plain, more = goods.collect(URL, None, None), goods.collect(URL, needs, None)
    assert plain.install("3.11.2") != more.install("3.11.2")
    assert plain.install("3.11.2") != plain.install("3.12.1")
    assert plain.install("3.11.2") == goods.collect(URL, None, None).install("3.11.2")

"""README's chapter about many machines, walked through as it is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.net import Host, Net
from tests.deploy.user import User

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CHAPTER = README.split("## On many machines")[1].split("\n## ")[0]
ALREADY = ("pip install",)


def blocks(kind: str, text: str = CHAPTER) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


def index_of(host: Host, wheels: Path) -> None:
    """Give the host a package index that it reaches: here a folder."""
    config = host.home / ".config" / "pip"
    config.mkdir(parents=True)
    (config / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")
    owner = host.home.stat().st_uid
    for path in (config.parent, config, config / "pip.conf"):
        os.chown(path, owner, owner)


@pytest.mark.timeout(400)
def test_the_chapter_about_many_machines(net: Net, database: int, wheels: Path) -> None:
    names = {
        "gpu1.example.org": net.add("gpu1", user="me"),
        "gpu2.example.org": net.add("gpu2", user="me", port=2222),
        "gate.example.org": net.add("gate", user="me"),
        "inner": net.add("inner", user="me"),
    }
    user = User(net, database, wheels)
    shared = net.folder / "wheels"
    shared.mkdir()
    for wheel in wheels.glob("*.whl"):
        shutil.copy(wheel, shared)
    for host in names.values():
        index_of(host, shared)
    (user.home / ".ssh" / "known_hosts").write_text("")
    lines = "".join(f"Host {name}\n  HostName {host.address}\n" for name, host in names.items())
    (user.home / ".ssh" / "config").write_text(f"{lines}Host *\n  User me\n  IdentityFile {net.key}\n")
    (user.home / "deploy").symlink_to(ROOT / "deploy")
    task = next(text for text in blocks("python", README) if "space = {" in text)
    (user.home / "optimise_task.py").write_text(task)
    (user.home / "hosts.txt").write_text(blocks("text")[0].replace("slots=auto", "slots=1"))
    bin_folder = user.home / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "hyperfarm").symlink_to(Path(sys.executable).with_name("hyperfarm"))
    # The database runs already: tests/deploy/test_compose.py and test_mongodb_users.py are about docker compose.
    start, work = (
        next(text for text in blocks("sh") if line in text)
        for line in ("start_workers.sh", "stop_workers.sh")
    )
    commands = [line for line in (start + work).splitlines() if not line.startswith(ALREADY)]
    said = {}
    for line in commands:
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=user.home,
            env=user.env,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        said[line] = done.stdout
    assert "3 of 3 hosts" in said["deploy/start_workers.sh hosts.txt"]
    assert "500 ok, 0 failed" in "".join(said.values())
    top = said["hyperfarm top --once"]
    assert "3 alive on 3 hosts" in top
    assert list(user.home.glob("*.png"))
    assert "3 of 3 hosts" in said["deploy/stop_workers.sh hosts.txt"]
    for host in names.values():
        assert not host.workers()

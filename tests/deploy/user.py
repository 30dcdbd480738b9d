"""A person at the controller of a farm: a home with hosts.txt and SSH's files, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.deploy.net import Net


class User:
    """A person at the controller: a home with hosts.txt, and the command line."""

    def __init__(self, net: Net, port: int, wheels: Path) -> None:
        self.net, self.wheels = net, wheels
        self.home = net.folder / "controller"
        (self.home / ".ssh").mkdir(parents=True)
        (self.home / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {net.key}\n")
        (self.home / ".ssh" / "known_hosts").write_text(net.known_hosts())
        self.url = f"mongodb://{net.gateway}:{port}/farm"
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "HYPERFARM_MONGO": self.url,
            "COLUMNS": "200",
        }

    def write(self, *lines: str) -> None:
        (self.home / "hosts.txt").write_text("\n".join(lines) + "\n")

    def hyperfarm(self, *words: str, code: int = 0, within_s: float = 120) -> str:
        """Run a command line; return all that it printed: its progress, then its table."""
        done = subprocess.run(
            [sys.executable, "-m", "hyperfarm.cli", *words],
            cwd=self.home,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stderr + done.stdout

    def up(self, *words: str, code: int = 0) -> str:
        return self.hyperfarm("hosts", "up", "--wheelhouse", str(self.wheels), *words, code=code)

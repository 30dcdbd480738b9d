"""People without a MongoDB: commands without a URL, in an empty home."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from hyperfarm import embedded, hp, minimize
from hyperfarm.store import Store
from tests.support import COMMAND, TWO_PARAMETERS, eventually, hyperfarm, started

GOOD = TWO_PARAMETERS + "def objective(p):\n    return p['x'] ** 2\n"


def mongods_of(folder: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in process.info["cmdline"] or [])
        and "mongod" in (process.info["cmdline"] or [""])[0]
    ]


def test_run_show_and_rm_without_a_url_leave_no_process_behind(own_home, tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    ran = hyperfarm("run", "mine.py", "--max-evals", "4", "--workers", "2", cwd=tmp_path)
    assert "4 ok, 0 failed" in ran.stdout
    assert not mongods_of(own_home)
    assert "mine" in hyperfarm("ls").stdout
    assert "4 done" in hyperfarm("show", "mine").stdout
    hyperfarm("rm", "mine", "--yes")
    assert "mine" not in hyperfarm("ls").stdout
    assert not mongods_of(own_home)


def test_ctrl_c_stops_the_private_database_too(own_home, tmp_path):
    (tmp_path / "mine.py").write_text(GOOD.replace("return", "import time; time.sleep(0.2)\n    return"))
    with started("run", "mine.py", "--max-evals", "900", cwd=tmp_path) as process:
        eventually(lambda: embedded.status(), "the private database runs")
        url = embedded.status().url
        store = Store.open(url)
        eventually(lambda: any(doc["state"] == 2 for doc in store.find_jobs("mine")), "a finished trial")
        store.close()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "carry it on with the same command" in output
    eventually(lambda: not mongods_of(own_home), "mongod is gone", 5)


def test_db_start_keeps_it_running_for_other_terminals(own_home, tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    url = hyperfarm("db", "start").stdout.split()[-1]
    try:
        with started("worker", "--mongo", url):
            hyperfarm("run", "mine.py", "--max-evals", "3", "--workers", "0", cwd=tmp_path)
        assert mongods_of(own_home)
    finally:
        hyperfarm("db", "stop")
    assert not mongods_of(own_home)


def test_minimize_without_a_url(own_home, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        GOOD
        + """
from hyperfarm import minimize
if __name__ == "__main__":
    result = minimize(objective, space, max_evals=3, progress=False)
    print(result.reason, len(result.trials), result.best["x"] ** 2 == result.best_loss)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.split("\n")[0] == "all trials are finished 3 True"
    assert not mongods_of(own_home)


def test_a_search_on_a_standalone_server(tmp_path):
    with embedded.throwaway(tmp_path / "db", replica_set=False) as server:
        space = {"x": hp.uniform("x", 0, 1)}
        result = minimize(
            lambda p: p["x"], space, max_evals=10, mongo=server.url, workers=2, exp_key="k", progress=False
        )
        assert result.complete
        assert len(result.trials) == 10


def test_the_console_script_is_installed():
    assert Path(COMMAND).is_file()

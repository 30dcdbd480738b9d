"""Fixtures that every test may use: a real mongod, a fresh database, an empty home."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperfarm import embedded
from hyperfarm.store import Store


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Server]:
    """One replica set of one for the whole run, with test commands switched on."""
    folder = tmp_path_factory.mktemp("mongod")
    with embedded.throwaway(folder, extra_args=["--setParameter", "enableTestCommands=1"]) as server:
        yield server


@pytest.fixture
def mongo_url(mongod: embedded.Server) -> str:
    """The URL of a database that no other test uses."""
    return f"mongodb://127.0.0.1:{mongod.port}/test_{uuid.uuid4().hex[:12]}?replicaSet=hyperfarm"


@pytest.fixture
def store(mongo_url: str) -> Iterator[Store]:
    opened = Store.open(mongo_url)
    yield opened
    opened.database.client.drop_database(opened.database.name)
    opened.close()


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing that a test does touches the user's own settings, secret or private database.

    The cache stays the user's: mongod is fetched once, not once per test. The home is removed at the end: a
    private database in it takes 300 MB.
    """
    from hyperfarm import settings

    cache = settings.cache_dir()
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("HYPERFARM_") and name != "HYPERFARM_MONGOD"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HYPERFARM_CONFIG", str(home / "config"))
    monkeypatch.setenv("HYPERFARM_DATA", str(home / "data"))
    monkeypatch.setenv("HYPERFARM_CACHE", str(cache))
    yield home
    shutil.rmtree(home, ignore_errors=True)

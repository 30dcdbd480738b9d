"""One database for all tests of the store, emptied after each: making its indexes anew takes longer than a test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from hyperfarm import embedded
from hyperfarm.store import Store


@pytest.fixture(scope="session")
def shared(mongod: embedded.Server) -> Iterator[tuple[str, Store]]:
    url = f"mongodb://127.0.0.1:{mongod.port}/store_{uuid.uuid4().hex[:12]}?replicaSet=hyperfarm"
    opened = Store.open(url)
    yield url, opened
    opened.close()


@pytest.fixture
def mongo_url(shared: tuple[str, Store]) -> str:
    return shared[0]


@pytest.fixture
def store(shared: tuple[str, Store]) -> Iterator[Store]:
    opened = shared[1]
    yield opened
    for name in opened.database.list_collection_names():
        opened.database[name].delete_many({})

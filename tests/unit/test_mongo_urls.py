"""Addresses of a farm: hyperopt's form and MongoDB's, with any password, and none of it ever shown."""

from __future__ import annotations

import re
import socket
import time
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.uri_parser import parse_uri

from hyperfarm.errors import DatabaseUnavailable, SettingsError
from hyperfarm.mongo import connect, hide_password, normalise_url
from hyperfarm.store import Store


@pytest.mark.parametrize(
    ("url", "full", "database"),
    [
        ("mongo://localhost:1234/foo_db/jobs", "mongodb://localhost:1234/foo_db", "foo_db"),
        ("mongo://localhost:1234/foo_db", "mongodb://localhost:1234/foo_db", "foo_db"),
        ("mongo://localhost/foo_db/jobs/", "mongodb://localhost/foo_db", "foo_db"),
        ("mongo://u:p@h:1/db/jobs", "mongodb://u:p@h:1/db", "db"),
        ("mongo://u:p%40w@h/db/jobs?authSource=admin", "mongodb://u:p%40w@h/db?authSource=admin", "db"),
        ("mongodb://h", "mongodb://h", "hyperfarm"),
        ("mongodb://h/", "mongodb://h/", "hyperfarm"),
        ("mongodb://h:1/farm", "mongodb://h:1/farm", "farm"),
        ("mongodb://h/?replicaSet=rs0", "mongodb://h/?replicaSet=rs0", "hyperfarm"),
        (
            "mongodb://a:1,b:2,c:3/farm?replicaSet=rs0&tls=true&w=majority",
            "mongodb://a:1,b:2,c:3/farm?replicaSet=rs0&tls=true&w=majority",
            "farm",
        ),
        ("mongodb://[::1]:27017/farm", "mongodb://[::1]:27017/farm", "farm"),
        ("mongodb://%2Ftmp%2Fmongodb.sock/farm", "mongodb://%2Ftmp%2Fmongodb.sock/farm", "farm"),
        ("mongodb+srv://cluster.example.net/farm", "mongodb+srv://cluster.example.net/farm", "farm"),
        ("mongodb+srv://cluster.example.net", "mongodb+srv://cluster.example.net", "hyperfarm"),
        ("mongodb://h/farm.jobs", "mongodb://h/farm.jobs", "farm"),
    ],
)
def test_both_forms_are_understood(url: str, full: str, database: str) -> None:
    assert normalise_url(url) == (full, database)


def as_it_is(password: str) -> str:
    """In hyperopt's kind of address people write passwords raw; only what looks encoded must be."""
    return quote(password) if re.search("%[0-9a-fA-F]{2}", password) else password


@given(password=st.text(min_size=1, max_size=12, alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_password_passes_when_it_is_percent_encoded(password: str) -> None:
    for form, encode in (
        ("mongodb://us%40er:{}@h:1/db?authSource=admin", quote_plus),
        ("mongo://us%40er:{}@h:1/db/jobs", quote),
        ("mongo://us@er:{}@h:1/db/jobs", as_it_is),
    ):
        full, database = normalise_url(form.format(encode(password)))
        parsed = parse_uri(full)
        assert (parsed["username"], parsed["password"], database) == ("us@er", password, "db")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    password=st.text(min_size=1, max_size=12, alphabet=st.characters(codec="utf-8", exclude_characters="\0"))
)
def test_a_password_of_the_environment_is_put_in(password: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERFARM_MONGO_PASSWORD", password)
        for form in ("mongodb://us%40er@h:1/db", "mongo://us%40er@h:1/db/jobs"):
            parsed = parse_uri(normalise_url(form)[0])
            assert (parsed["username"], parsed["password"]) == ("us@er", password)
        assert parse_uri(normalise_url("mongodb://us%40er:own@h:1/db")[0])["password"] == "own"
        assert normalise_url("mongodb://h:1/db")[0] == "mongodb://h:1/db"


def test_a_password_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    monkeypatch.setenv("HYPERFARM_MONGO_PASSWORD_FILE", str(file))
    with pytest.raises(SettingsError, match=r"HYPERFARM_MONGO_PASSWORD_FILE cannot be read.*password"):
        normalise_url("mongodb://user@h/db")
    file.write_text("p@ss\n")
    assert parse_uri(normalise_url("mongodb://user@h/db")[0])["password"] == "p@ss"


SECRET = "Zecret"
MALFORMED = [
    "",
    "localhost:27017",
    "http://h/db",
    "mongodb://",
    "mongodb:/h/db",
    "mongo://h:1",
    "mongo://h:1/",
    "mongo://h:1/db/trials",
    "mongo://h:1/a/b/jobs",
    "mongodb://h:notaport/db",
    "mongodb://h:99999/db",
    "mongodb://h/db?replicaSet",
    "mongodb://h/bad$name",
    f"postgres://u:{SECRET}@h/db",
    f"MONGODB://u:{SECRET}@h/db",
    f"mongodb://u:{SECRET}@{SECRET}@h/db",
    f"mongodb://u:a:{SECRET}@h/db",
    f"mongodb://u:a/{SECRET}@h/db",
    f"mongodb://u:{SECRET}/a@h/db",
    f"mongodb://u:a?{SECRET}@h/db",
    f"mongodb://u:{SECRET}%zz@h/db",
    f"mongodb://u:{SECRET} {SECRET}@h:1x/db",
    f"mongodb://u:{SECRET}@h:port/db",
    f"mongodb://u:{SECRET}@h/db?authSource",
    f"mongo://u:{SECRET}@h/db/trials",
    f"mongo://u:{SECRET}#{SECRET}@h",
    f"mongodb://h:x/db?tls=true&tlsCertificateKeyFilePassword={SECRET}",
]


@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_address_is_a_sentence_without_the_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        connect(url)
    told = "".join(traceback.format_exception(caught.value))
    assert "mongodb://[user:password@]host:port/database" in str(caught.value)
    assert SECRET not in told.partition("SettingsError")[2], told
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mongodb://u:p@h/db", "mongodb://u:***@h/db"),
        ("mongodb+srv://u:p@h/db", "mongodb+srv://u:***@h/db"),
        ("mongo://u:p@ss@h/db/jobs", "mongo://u:***@h/db/jobs"),
        ("MONGODB://u:p@h", "MONGODB://u:***@h"),
        ("mongodb://u:p p@h", "mongodb://u:***@h"),
        ("cannot reach mongodb://u:p@h:1 now", "cannot reach mongodb://u:***@h:1 now"),
        (
            "mongodb://h:1/db?tlsCertificateKeyFilePassword=x&a=1",
            "mongodb://h:1/db?tlsCertificateKeyFilePassword=***&a=1",
        ),
        ("mongodb://u@h/db", "mongodb://u@h/db"),
        ("mongodb://h:1,i:2/db", "mongodb://h:1,i:2/db"),
        ("no address at all", "no address at all"),
    ],
)
def test_passwords_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert hide_password(text) == shown


def test_no_server_is_told_within_five_seconds() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Bound and not listening: nobody answers.
        port = unused.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as caught:
            Store.open(f"mongodb://u:{SECRET}@127.0.0.1:{port}/db")
    assert time.monotonic() - started < 5.0
    told = str(caught.value)
    assert f"no MongoDB answers at mongodb://u:***@127.0.0.1:{port}/db" in told
    assert "hyperfarm db start" in told
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_says_nothing_is_told_too() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DatabaseUnavailable, match="no MongoDB answers"):
            connect(f"mongodb://127.0.0.1:{silent.getsockname()[1]}/db", timeout_s=0.5)


def test_a_certificate_that_is_not_there():
    with pytest.raises(SettingsError, match=r"/nowhere\.pem' names a file that cannot be read: \w"):
        normalise_url("mongodb://me:secret@db/farm?tls=true&tlsCAFile=/nowhere.pem")

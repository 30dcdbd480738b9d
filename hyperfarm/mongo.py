"""Connecting to MongoDB: URLs, clients, and pymongo's errors put into hyperfarm's words."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import quote_plus, unquote, unquote_plus, urlsplit

import pymongo
from bson.errors import BSONError
from pymongo import MongoClient, errors
from pymongo.database import Database
from pymongo.uri_parser import parse_uri

from hyperfarm import settings
from hyperfarm.errors import DatabaseError, DatabaseUnavailable, OutcomeUnknown, SettingsError

Document = dict[str, Any]
DEFAULT_DATABASE = "hyperfarm"
CONNECT_TIMEOUT_S = 4.0
ANSWER_TIMEOUT_S = 45.0
"""A server that has not answered a statement for so long is taken for gone; longer than a change stream waits."""
OPTIONS: dict[str, Any] = {
    # The default of most servers, but not of all: with less, an election could take back a result.
    "w": "majority",
    "socketTimeoutMS": int(ANSWER_TIMEOUT_S * 1000),
    # One question in ten seconds, not two: with 200 idle hosts most statements would be the driver's own.
    "serverMonitoringMode": "poll",
}
# A cursor that cannot be closed, as its server is away, is nobody's concern; the driver logs a traceback.
logging.getLogger("pymongo.client").addFilter(lambda record: "background task" not in record.getMessage())
FORMS = "mongodb://[user:password@]host:port/database or mongo://host:port/database/jobs"


def hide_password(text: str) -> str:
    """Return `text` with the password of any URL in it, also of a badly written one, replaced by `***`."""
    text = re.sub(r"(?i)(?P<head>[a-z+]+://[^/@\s:]*):.*@", r"\g<head>:***@", text)
    return re.sub(r"(?i)(password=)[^&\s]*", r"\1***", text)


def _reason(error: Exception, url: str) -> str:
    """Why an address is refused; what the driver says of one with a password may show pieces of it."""
    if "@" in url:
        return "in user names and passwords, characters such as : / ? # @ % must be percent-encoded"
    return hide_password(str(error))


def normalise_url(url: str) -> tuple[str, str]:
    """Return (a URL that pymongo takes, the name of the database).

    Takes any `mongodb://` or `mongodb+srv://` URI, and hyperopt's `mongo://[user:password@]host[:port]/db[/jobs]`.
    A password from the environment is put in when the URL names a user without one. Raises SettingsError;
    no message shows a password.
    """
    scheme, separator, rest = url.partition("://")
    shown = hide_password(url)
    if scheme == "mongo" and separator:
        account, at, place = rest.rpartition("@")
        try:
            parts = urlsplit(f"mongo://{place}")
        except ValueError as error:
            raise SettingsError(f"{shown!r} is not a usable address: {error}; write {FORMS}") from None
        path = [part for part in parts.path.split("/") if part]
        if not 1 <= len(path) <= 2 or (len(path) == 2 and path[1] != "jobs"):
            raise SettingsError(f"{shown!r} is not a usable address: write {FORMS}")
        rest = f"{_quoted(account)}{at}{parts.netloc}/{path[0]}" + (f"?{parts.query}" if parts.query else "")
        scheme = "mongodb"
    if scheme not in ("mongodb", "mongodb+srv") or not rest:
        raise SettingsError(f"{shown!r} is not a MongoDB address: write {FORMS}")
    rest = _with_password(rest)
    try:
        # The look-up of an SRV record belongs to connecting, not to reading the address.
        parsed = parse_uri(f"mongodb://{rest}", warn=False) if scheme == "mongodb" else {}
        database = parsed.get("database") or urlsplit(f"x://{rest}").path.lstrip("/") or DEFAULT_DATABASE
    except OSError as error:
        reason = (
            f"{error.strerror}: {error.filename}"
            if error.strerror
            else hide_password(str(error)).removesuffix(": None")
        )
        raise SettingsError(f"{shown!r} names a file that cannot be read: {reason}") from None
    except (errors.PyMongoError, ValueError) as error:
        raise SettingsError(
            f"{shown!r} is not a usable address: {_reason(error, url)}; write {FORMS}"
        ) from None
    return f"{scheme}://{rest}", database.split(".")[0]


def _quoted(account: str) -> str:
    """`user[:password]` of hyperopt's kind of address, where people write every character as it is."""
    return ":".join(quote_plus(unquote(part)) for part in account.split(":", 1))


def _with_password(rest: str) -> str:
    """Put the password of the environment behind a user name that stands alone before the `@`."""
    user, at, host = rest.rpartition("@")
    if at and user and ":" not in user:
        password = settings.mongo_password()
        if password is not None:
            return f"{quote_plus(unquote_plus(user))}:{quote_plus(password)}@{host}"
    return rest


class SelfClosing(MongoClient[Document]):
    """A client for programs that never close theirs: it closes itself when nobody refers to it any more."""

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # The interpreter may be going down.
            self.close()


def connect(
    url: str,
    *,
    app: str = "hyperfarm",
    timeout_s: float = CONNECT_TIMEOUT_S,
    client_class: type[MongoClient[Document]] = MongoClient,
) -> Database[Document]:
    """Return the farm's database, after one round trip that proves the server answers and lets us in.

    Raises SettingsError for a malformed URL, DatabaseUnavailable when no server answers within
    `timeout_s` seconds, DatabaseError when it refuses the user.
    """
    full, name = normalise_url(url)
    try:
        client = client_class(
            full,
            appname=app,
            tz_aware=True,
            serverSelectionTimeoutMS=int(timeout_s * 1000),
            connectTimeoutMS=int(timeout_s * 1000),
            **_unless_given(full, OPTIONS),
        )
    except (errors.PyMongoError, ValueError) as error:
        raise SettingsError(
            f"{hide_password(url)!r} is not a usable address: {_reason(error, url)}"
        ) from None
    try:
        client.admin.command("ping")
        database = client[name]
        database.command("count", "jobs", limit=1)
    except errors.PyMongoError as error:
        client.close()
        raise connection_error(error, url) from error
    return database


def _unless_given(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the URL does not set itself."""
    given = {name.lower() for name in re.findall(r"[?&]([A-Za-z]+)=", url)}
    return {name: value for name, value in options.items() if name.lower() not in given}


def connection_error(error: errors.PyMongoError, url: str) -> DatabaseError:
    """Put what went wrong while connecting into one sentence without a password."""
    shown = hide_password(url)
    if isinstance(error, errors.OperationFailure):
        if error.code in (18, 8000) or "auth" in str(error).lower():
            return DatabaseError(f"MongoDB at {shown} refuses this user: check user, password and authSource")
        return DatabaseError(
            f"MongoDB at {shown} refuses to work: {hide_password(str(error.details or error))}"
        )
    if "No replica set members available" in str(error):
        return DatabaseUnavailable(f"no replica set of this name answers at {shown}: check replicaSet in it")
    if "No replica set members match" in str(error) or "No primary available" in str(error):
        return DatabaseUnavailable(
            f"the replica set at {shown} has no primary: it is electing one, or too few members are up; try again"
        )
    distrust = re.search(r"certificate verify failed: ([^(,]+)", str(error))
    if distrust is not None:
        return DatabaseError(
            f"the certificate of MongoDB at {shown} is not trusted ({distrust[1].strip()}): "
            "name its CA in the address, with tlsCAFile=/path/to/ca.crt"
        )
    reason = re.split(r"[,(]", hide_password(str(error)))[0].strip()
    if reason.endswith("connection closed") and not re.search(r"(?i)[?&](tls|ssl)=true|^mongodb\+srv:", url):
        reason += "; if it wants TLS, add tls=true"
    return DatabaseUnavailable(
        f"no MongoDB answers at {shown} ({reason}); start one with `hyperfarm db start`, or check the address"
    )


GOING_AWAY = frozenset({6, 7, 50, 64, 79, 89, 91, 100, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436})
"""Codes of a server that shuts down, steps down, or lost its peers: the write may or may not have been applied."""
OUT_OF_DISK_SPACE = 14031


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn pymongo's errors inside the block into ours, saying that it happened while `what`."""
    try:
        yield
    except (errors.ServerSelectionTimeoutError, errors.NotPrimaryError) as error:
        raise DatabaseUnavailable(f"MongoDB cannot be reached while {what}: {_brief(error)}") from error
    except (errors.ConnectionFailure, errors.WriteConcernError) as error:
        raise OutcomeUnknown(f"the connection to MongoDB broke while {what}: {_brief(error)}") from error
    except errors.OperationFailure as error:
        if error.code == OUT_OF_DISK_SPACE:
            raise DatabaseUnavailable(
                f"MongoDB has no disk space left for {what}: {_brief(error)}"
            ) from error
        if error.code in GOING_AWAY or error.timeout:
            raise OutcomeUnknown(f"MongoDB was going away while {what}: {_brief(error)}") from error
        raise DatabaseError(f"MongoDB refused {what}: {_brief(error)}") from error
    except (errors.PyMongoError, BSONError) as error:
        raise DatabaseError(f"MongoDB refused {what}: {_brief(error)}") from error


def within(seconds: float) -> AbstractContextManager[None]:
    """Bound all the statements of the block together; past it they raise OutcomeUnknown or DatabaseUnavailable."""
    return pymongo.timeout(seconds)


def _brief(error: Exception) -> str:
    return hide_password(str(error)).split(" (configured timeouts")[0].split(", Timeout:")[0][:300]


def driver_version() -> str:
    return pymongo.version

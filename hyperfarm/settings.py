"""Where things of this user lie, and which MongoDB is meant.

A URL comes from, in this order: the command line or the caller, the environment variable HYPERFARM_MONGO,
the file `mongo-url` in the user's configuration folder; without any, the private database is used.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import platformdirs

from hyperfarm.errors import SettingsError

APP = "hyperfarm"
SECRET_BYTES = 32
LEGACY_GRACE_S = 24 * 3600.0
"""hyperopt's own workers say nothing while an objective runs, and some run for a day."""


def config_dir() -> Path:
    """The user's configuration folder (HYPERFARM_CONFIG moves it)."""
    return Path(os.environ.get("HYPERFARM_CONFIG") or platformdirs.user_config_dir(APP))


def cache_dir() -> Path:
    """The user's cache folder: everything in it can be made again (HYPERFARM_CACHE moves it)."""
    return Path(os.environ.get("HYPERFARM_CACHE") or platformdirs.user_cache_dir(APP))


def mongo_url(given: str | None = None) -> str | None:
    """Return the URL of the database that is meant, or None for the private one. Raises SettingsError."""
    if given:
        return given
    if os.environ.get("HYPERFARM_MONGO"):
        return os.environ["HYPERFARM_MONGO"]
    file = config_dir() / "mongo-url"
    try:
        return file.read_text().strip() or None if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the address of the database cannot be read from {file}: {error}") from error


def mongo_password() -> str | None:
    """Return the password from HYPERFARM_MONGO_PASSWORD or the file HYPERFARM_MONGO_PASSWORD_FILE, if any."""
    if os.environ.get("HYPERFARM_MONGO_PASSWORD"):
        return os.environ["HYPERFARM_MONGO_PASSWORD"]
    named = os.environ.get("HYPERFARM_MONGO_PASSWORD_FILE")
    if not named:
        return None
    try:
        return Path(named).read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"HYPERFARM_MONGO_PASSWORD_FILE cannot be read: {error.strerror}: {named}"
        ) from error


def legacy_grace_s() -> float:
    """For how long a worker of hyperopt's own may be silent, in seconds (HYPERFARM_LEGACY_GRACE, else a day)."""
    given = os.environ.get("HYPERFARM_LEGACY_GRACE", "")
    try:
        seconds = float(given) if given else LEGACY_GRACE_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"HYPERFARM_LEGACY_GRACE is {given!r}; it must be a number of seconds above 0")
    return seconds


def secret_file() -> Path:
    """The file that holds the farm's secret (HYPERFARM_SECRET_FILE moves it)."""
    return Path(os.environ.get("HYPERFARM_SECRET_FILE") or config_dir() / "secret")


def farm_secret() -> bytes:
    """Return the farm's secret, which signs bundles; it is made on first use, readable by the user alone.

    Raises SettingsError when the file is empty, unreadable, or open to other users.
    """
    file = secret_file()
    try:
        return _read_secret(file)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SettingsError(f"the farm's secret cannot be read: {error.strerror}: {file}") from error
    try:
        _make_secret(file)
        return _read_secret(file)
    except OSError as error:
        raise SettingsError(f"the farm's secret cannot be written: {error.strerror}: {file}") from error


def _read_secret(file: Path) -> bytes:
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise SettingsError(
            f"the farm's secret {file} can be read by other users; make a new one or run: chmod 600 {file}"
        )
    try:
        secret = bytes.fromhex(file.read_text().strip())
    except ValueError:
        secret = b""
    if len(secret) < SECRET_BYTES:
        raise SettingsError(
            f"the farm's secret {file} is damaged; copy it again from the host of the controller, or remove it"
        )
    return secret


def _make_secret(file: Path) -> None:
    """Write a new secret so that two processes doing so at once end up with the same one."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(SECRET_BYTES) + "\n")
        try:
            os.link(temporary, file)
        except FileExistsError:
            return
    finally:
        temporary.unlink()

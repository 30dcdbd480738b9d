"""What every host is given: the wheel, requirements, the address of the database, the secret, TLS files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from hyperfarm import settings
from hyperfarm.deploy import wheel
from hyperfarm.errors import UsageError
from hyperfarm.mongo import normalise_url

TLS_OPTIONS = ("tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile")
_LOCAL = re.compile(r"(?:@|//|,)(?:localhost|127(?:\.\d+){3}|\[::1\])(?=[:/,]|$)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Goods:
    """Everything as bytes, read once before any host is touched.

    `config`: the files of the host's configuration folder, by name; the database's address stands in `url` since it
    may name files of that folder: `{folder}` in it is the host's workdir.
    """

    wheel_name: str
    wheel: bytes
    requirements: bytes
    wheelhouse: tuple[Path, ...]
    url: str = field(repr=False)
    config: dict[str, bytes] = field(repr=False)

    def install(self, python: str) -> dict[str, str]:
        """What the environment of a host must be made of; when it differs, it is made anew."""
        return {
            "wheel": digest(self.wheel),
            "requirements": digest(self.requirements),
            "wheelhouse": digest("\n".join(path.name for path in self.wheelhouse).encode()),
            "python": python,
        }

    def files(self, folder: str) -> dict[str, bytes]:
        """The files of a host's configuration folder."""
        return {**self.config, "mongo-url": (self.url.replace("{folder}", quote(folder)) + "\n").encode()}


def collect(url: str, requirements: Path | None, wheelhouse: Path | None) -> Goods:
    """Read all that the hosts get. Raises UsageError or SettingsError for what cannot be read."""
    name, content = wheel.build()
    full, _ = normalise_url(url)
    full, tls = _take_tls_files(full)
    secret = settings.farm_secret().hex().encode() + b"\n"
    return Goods(
        wheel_name=name,
        wheel=content,
        requirements=_content(requirements) if requirements else b"",
        wheelhouse=tuple(sorted(wheelhouse.glob("*.whl"))) if wheelhouse else (),
        url=full,
        config={"secret": secret, **tls},
    )


def is_local(url: str) -> bool:
    """True when an address of the database means another machine on every host."""
    return bool(_LOCAL.search(url))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _take_tls_files(url: str) -> tuple[str, dict[str, bytes]]:
    """The address with the files that it names in the host's folder, and those files."""
    files: dict[str, bytes] = {}
    for option in TLS_OPTIONS:
        found = re.search(rf"([?&]{option}=)([^&]+)", url, re.IGNORECASE)
        if found:
            name = f"{option}.pem"
            files[name] = _content(Path(unquote(found[2])).expanduser())
            url = url[: found.start(2)] + f"{{folder}}/config/{name}" + url[found.end(2) :]
    return url, files

"""The wheel of the hyperfarm that runs now, made from its own files: the hosts get exactly this code.

The format is that of the binary distribution format, version 1.0 (packaging.python.org). The same files make
the same bytes, so the hash of a wheel tells whether a host has this very code.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

import hyperfarm

TAG = "py3-none-any"
EPOCH = (1980, 1, 1, 0, 0, 0)
GENERATED = f"Wheel-Version: 1.0\nGenerator: hyperfarm\nRoot-Is-Purelib: true\nTag: {TAG}\n"


def build() -> tuple[str, bytes]:
    """Return file name and content of the wheel."""
    known = metadata.distribution("hyperfarm")
    info = f"hyperfarm-{known.version}.dist-info"
    files = {name: path.read_bytes() for name, path in _sources().items()}
    files[f"{info}/METADATA"] = (known.read_text("METADATA") or known.read_text("PKG-INFO") or "").encode()
    files[f"{info}/entry_points.txt"] = (known.read_text("entry_points.txt") or "").encode()
    files[f"{info}/WHEEL"] = GENERATED.encode()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return f"hyperfarm-{known.version}-{TAG}.whl", out.getvalue()


def _sources() -> dict[str, Path]:
    """The package's files by their place in the wheel; links to the roles are followed."""
    root = Path(hyperfarm.__file__).parent
    folders = [root, *(path for path in sorted(root.iterdir()) if (path / "__init__.py").is_file())]
    found = [path for folder in folders for path in sorted(folder.iterdir())]
    wanted = [
        path
        for path in found
        if path.is_file() and (path.suffix in (".py", ".sh") or path.name == "py.typed")
    ]
    return {f"hyperfarm/{path.relative_to(root).as_posix()}": path for path in wanted}


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")

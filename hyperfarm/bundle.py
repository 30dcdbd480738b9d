"""Packs an objective and the user's own modules, signs the bundle, and verifies before unpickling.

A bundle is a zip file: `manifest.json`, `src/` with the source files, and `objective.pkl`. Unpickling
runs code: a worker calls `verify`, then `unpack`, and `load` only in the child process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import importlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import cloudpickle

from hyperfarm.errors import BundleError, BundleRefused
from hyperfarm.fingerprint import (
    Held,
    define_symbols,
    fingerprint,
    fingerprint_space,
    held_by,
    is_by_value,
    name_of,
    type_name,
    user_symbols,
)
from hyperfarm.sources import (
    Import,
    Sources,
    find_sources,
    imports_of_code,
    imports_of_script,
    main_script,
    root_of,
)

SIZE_LIMIT_BYTES = 64 << 20
"""The source files and the pickled objective together must not be larger."""

_FORMAT = 1
_ALWAYS = ("hyperopt", "numpy", "cloudpickle", "hyperfarm")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An objective ready to travel.

    `revision`: SHA-256 in hex over source files, space, name and arguments; equal for two packings of
    the same code. `python`: (major, minor) that a worker must run. `packages`: versions by distribution.
    """

    content: bytes
    revision: str
    name: str
    python: tuple[int, int]
    packages: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a child process runs: what `pack` was given, in another process."""

    fn: Callable[..., Any]
    space: Any
    pass_expr_memo_ctrl: bool | None


def pack(
    fn: Callable[..., Any],
    space: Any,
    *,
    pass_expr_memo_ctrl: bool | None = None,
    include: Sequence[Path] = (),
    script: Path | None = None,
) -> Bundle:
    """Bundle an objective, its space, and the user's own source files that it imports.

    `script` is the file that was run, by default that of `__main__`; it is read, never run again.
    `include` adds files and folders, relative to the script's folder (without a script: to the working
    directory). In the child `__file__` of the script's functions lies beside them.

    Raises BundleError: something cannot be pickled (told with the variable that holds it), a module is
    compiled or zipped, an included path does not exist, or all is over `SIZE_LIMIT_BYTES`.
    """
    script = script.absolute() if script else main_script()
    folder = root_of(script) if script else Path.cwd()
    include = [(script.parent if script else folder) / path for path in include]
    payload = {"fn": fn, "space": space, "pass_expr_memo_ctrl": pass_expr_memo_ctrl}
    pickled, recorder = _pickle({**payload, "symbols": user_symbols(space), "main": {}})
    imports = recorder.imports + (imports_of_script(script) if script else [])
    sources = find_sources(modules=recorder.modules, imports=imports, include=include, folder=folder)
    if len(pickled) + sum(map(len, sources.files.values())) > SIZE_LIMIT_BYTES:
        raise _too_large(fn, sources.files)
    identity = (fingerprint(fn), fingerprint_space(space), pass_expr_memo_ctrl, sources.files)
    revision, owners = fingerprint(identity), _distributions(sources)
    packages = {name: _version(name) for name in sorted({*_ALWAYS, *owners.values()})}
    version = sys.version_info[:2]
    manifest = {
        "format": _FORMAT,
        "revision": revision,
        "name": name_of(fn),
        "python": version,
        "packages": packages,
        "owners": owners,
        "script": script.relative_to(folder).as_posix() if script else None,
        "sizes": {f"src/{name}": len(data) for name, data in sources.files.items()}
        | {"objective.pkl": len(pickled)},
    }
    content = _zip(manifest, sources.files, pickled)
    return Bundle(content=content, revision=revision, name=name_of(fn), python=version, packages=packages)


def sign(secret: bytes, content: bytes, exp_key: str | None, revision: str) -> str:
    """Return the HMAC-SHA256, in hex, of content, experiment and revision; no exp_key is not ""."""
    if not secret:
        raise BundleError("The farm's secret is empty: nothing can be signed with it.")
    return mac(secret, b"hyperfarm bundle 1", content, exp_key, revision)


def sign_checkpoint(secret: bytes, sha256: str, exp_key: str | None, tid: int) -> str:
    """Return the HMAC-SHA256, in hex, of a checkpoint's digest, its experiment and its trial.

    Objectives unpickle what they have saved: a checkpoint is handed out only if a worker of the farm made it.
    """
    return mac(secret, b"hyperfarm checkpoint 1", sha256.encode(), exp_key, str(tid))


def is_signed_checkpoint(secret: bytes, ref: Mapping[str, Any], exp_key: str | None, tid: int) -> bool:
    """True if the farm's secret signed the checkpoint that `ref` refers to for this trial."""
    wanted = sign_checkpoint(secret, str(ref.get("sha256")), exp_key, tid)
    return hmac.compare_digest(wanted.encode(), str(ref.get("signature")).encode("utf-8", "surrogatepass"))


def mac(secret: bytes, purpose: bytes, content: bytes, exp_key: str | None, which: str) -> str:
    """HMAC-SHA256, in hex, of the parts with their lengths: no two different calls sign the same bytes."""
    signed = hmac.new(secret, purpose, hashlib.sha256)
    key = b"\0" if exp_key is None else b"\1" + exp_key.encode()
    for part in (content, key, which.encode()):
        signed.update(len(part).to_bytes(8, "big"))
        signed.update(part)
    return signed.hexdigest()


def verify(secret: bytes, content: bytes, exp_key: str | None, revision: str, signature: str | None) -> None:
    """Return if the farm's secret signed this content for this experiment and revision.

    Nothing is unpickled or unpacked. Raises BundleRefused otherwise.
    """
    where = f"The bundle {revision[:12]} of experiment {exp_key!r}"
    if not signature:
        raise BundleRefused(
            f"{where} is not signed: it is not loaded; start the search with hyperfarm again."
        )
    wanted = sign(secret, content, exp_key, revision)
    if not hmac.compare_digest(wanted.encode(), signature.encode("utf-8", "surrogatepass")):
        raise BundleRefused(
            f"{where} was altered, belongs to another experiment, or was signed with another farm's secret: "
            "it is not loaded; give this host the secret of the controller."
        )
    if _manifest(content).get("revision") != revision:
        raise BundleRefused(f"{where} holds another revision than it is signed for: it is not loaded.")


def unpack(content: bytes, folder: Path) -> Path:
    """Extract a verified bundle into `folder/<revision>/` and return that path.

    Many processes may do so at once: each writes a folder of its own and renames it. What is there and
    complete is used again; what is damaged is replaced. Raises BundleError: no bundle, or unsafe names.
    """
    revision = str(_manifest(content).get("revision"))
    if not re.fullmatch(r"[0-9a-f]{64}", revision):
        raise BundleError("This bundle names no valid revision: it was not made by hyperfarm.")
    target = folder / revision
    if _is_complete(target):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
    try:
        _extract(content, fresh / "new")
        for _ in range(10):
            try:
                os.rename(fresh / "new", target)
            except OSError:
                if _is_complete(target):
                    break
                with contextlib.suppress(FileNotFoundError):  # Another process was faster.
                    os.rename(target, Path(tempfile.mkdtemp(dir=fresh)) / "old")
            else:
                break
        else:
            raise BundleError(f"Cannot unpack the bundle into {target}: another process keeps changing it.")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def load(folder: Path) -> Objective:
    """Import an unpacked, verified objective into this process: `folder/src` comes first on `sys.path`.

    Raises BundleError: a module is missing here, or one of the user's modules fails when imported.
    """
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    home = str(folder.resolve() / "src")
    if home not in sys.path:
        sys.path.insert(0, home)
        importlib.invalidate_caches()
    try:
        payload = cloudpickle.loads((folder / "objective.pkl").read_bytes())
    except ModuleNotFoundError as exc:
        raise BundleError(_missing(exc.name or str(exc), manifest)) from exc
    except Exception as exc:
        versions = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
        raise BundleError(
            f"The objective {manifest['name']} cannot be loaded: {type(exc).__name__}: {exc}. "
            f"It was packed with {versions}; compare `pip list` on this host."
        ) from exc
    if manifest["script"]:
        payload["main"]["__file__"] = os.path.join(home, manifest["script"])
    define_symbols(payload["symbols"])
    return Objective(**{name: payload[name] for name in ("fn", "space", "pass_expr_memo_ctrl")})


class _TooLarge(Exception):
    """More bytes were pickled than a bundle may hold."""


class _Bounded(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > SIZE_LIMIT_BYTES:
            raise _TooLarge
        return super().write(data)


class _Recorder(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles as cloudpickle does, and notes which modules and imports the pickle needs."""

    def __init__(self, file: io.BytesIO, main: dict[str, Any]) -> None:
        super().__init__(file)
        self.modules: set[str] = set()
        self.imports: list[Import] = []
        space = vars(sys.modules["__main__"])
        # `main` becomes the namespace of the script's functions. Without __file__: it is set in the child.
        main.update(__name__="__main__", __package__=space.get("__package__"))
        self.globals_ref[id(space)] = main

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, io.IOBase) and not isinstance(obj, io.StringIO | io.BytesIO):
            if obj not in (sys.stdout, sys.stderr):
                raise TypeError("cannot pickle an open file")
        elif isinstance(obj, functools._lru_cache_wrapper) and is_by_value(obj):
            settings = obj.cache_parameters()
            return _cached, (obj.__wrapped__, settings["maxsize"], settings["typed"])
        elif isinstance(obj, types.CodeType):
            return _code, (obj.co_filename, *self.dispatch_table[types.CodeType](obj)[1])
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.ModuleType):
            self.modules.add(obj.__name__)
        elif isinstance(obj, types.FunctionType) and reduced is not NotImplemented:
            package = obj.__globals__.get("__package__") or ""
            self.imports += imports_of_code(obj.__code__, package)
        elif isinstance(obj, type | types.FunctionType) and reduced is NotImplemented and obj.__module__:
            self.modules.add(obj.__module__)
        return reduced


def _cached(fn: Callable[..., Any], maxsize: int | None, typed: bool) -> Callable[..., Any]:
    """Rebuild a function of the script behind functools.lru_cache: cloudpickle names it only."""
    return functools.lru_cache(maxsize, typed)(fn)


def _code(file: str, *parts: Any) -> types.CodeType:
    """Rebuild code with the name of its file, for tracebacks: newer versions of cloudpickle leave it out."""
    return types.CodeType(*parts).replace(co_filename=file)


def _dumps(value: object, main: dict[str, Any] | None = None) -> tuple[bytes, _Recorder]:
    recorder = _Recorder(file := _Bounded(), {} if main is None else main)
    recorder.dump(value)
    return file.getvalue(), recorder


def _pickle(payload: dict[str, Any]) -> tuple[bytes, _Recorder]:
    try:
        return _dumps(payload, payload["main"])
    except _TooLarge:
        raise _too_large(payload["fn"], {}) from None
    except Exception as exc:
        raise BundleError(_explain(payload, exc)) from exc


def _distributions(sources: Sources) -> dict[str, str]:
    """The installed distribution behind each third-party module."""
    known = metadata.packages_distributions()
    return {top: sorted(set(known[top]))[0] for top in sorted(sources.foreign) if known.get(top)}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _zip(manifest: dict[str, Any], files: dict[str, bytes], pickled: bytes) -> bytes:
    entries = {f"src/{name}": data for name, data in files.items()} | {"objective.pkl": pickled}
    entries["manifest.json"] = json.dumps(manifest, sort_keys=True, indent=1).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(info, entries[name])
    return file.getvalue()


def _fault(value: object) -> Exception | None:
    try:
        _dumps(value)
    except _TooLarge:
        return None
    except Exception as exc:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        return exc
    return None


def _explain(payload: dict[str, Any], exc: Exception) -> str:
    """One sentence that names the variable that holds what cannot be pickled."""
    roots = {"objective": payload["fn"], "space": payload["space"], "space's symbols": payload["symbols"]}
    what, value = next(((w, v) for w, v in roots.items() if _fault(v)), ("objective", payload["fn"]))
    path: list[Held] = []
    seen = {id(value)}
    while step := next((h for h in held_by(value) if id(h.value) not in seen and _fault(h.value)), None):
        path.append(step)
        value = step.value
        seen.add(id(value))
    if not path:
        return f"The {what} {name_of(value)} cannot be pickled for the workers: {exc}."
    holder = next((step for step in reversed(path) if step.is_variable), path[0])
    inner = path[-1]
    inside = "" if inner is holder else f" (in it, {inner.label} is a {type_name(inner.value)})"
    return (
        f"The {what} cannot be sent to the workers: {holder.label} holds a {type_name(holder.value)}"
        f"{inside}, which cannot be pickled. Create it inside the objective."
    )


def _too_large(fn: object, files: dict[str, bytes]) -> BundleError:
    """Name the three largest files and values."""
    sizes = {f"file {name}": len(data) for name, data in files.items()}
    todo, seen = [fn], set[int]()
    while todo:
        for held in held_by(todo.pop()):
            if id(held.value) in seen:
                continue
            seen.add(id(held.value))
            if isinstance(held.value, types.FunctionType | types.MethodType | functools.partial):
                todo.append(held.value)
                continue
            try:
                sizes[held.label] = len(_dumps(held.value)[0])
            except _TooLarge:
                sizes[held.label] = SIZE_LIMIT_BYTES
            except Exception:  # noqa: BLE001  (what cannot be pickled has no size)
                continue
    top = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{n} ({'over ' * (s >= SIZE_LIMIT_BYTES)}{s / 2**20:.1f} MB)" for n, s in top)
    return BundleError(
        f"The objective and its files are over the {SIZE_LIMIT_BYTES >> 20} MB that a bundle may hold; "
        f"largest: {told}. Load large data inside the objective, from a path that the hosts can read."
    )


def _missing(module: str, manifest: dict[str, Any]) -> str:
    top = module.partition(".")[0]
    told = f"The objective {manifest['name']} needs module {module}, which is missing on this host: "
    if owner := manifest["owners"].get(top):
        return f"{told}install {owner}=={manifest['packages'][owner]} in the environment of its worker."
    return f"{told}install the package that brings it; if it is a file of your own, pass it with include=."


def _manifest(content: bytes) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            manifest = json.loads(archive.read("manifest.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as exc:
        raise BundleError("This is not a bundle of hyperfarm, or it is damaged: pack it again.") from exc
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise BundleError("This bundle was made by another version of hyperfarm: use the same on all hosts.")
    return manifest


def _extract(content: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or re.search(r"\\|^[A-Za-z]:", name):
                raise BundleError(f"The bundle holds a file with the unsafe name {name!r}: not unpacked.")
        for name in archive.namelist():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(archive.read(name))


def _is_complete(target: Path) -> bool:
    """True if every file that the manifest lists is there in its size: a power cut may leave less."""
    try:
        sizes = json.loads((target / "manifest.json").read_bytes())["sizes"]
        return all((target / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False

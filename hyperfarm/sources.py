"""Finds the user's own source files that an objective needs, without importing or running anything.

A module is the user's own if it is a file outside the standard library and outside every site-packages
folder. Editable installs of the user's own packages are such files. hyperfarm, hyperopt and cloudpickle
never travel: a worker has them.
"""

from __future__ import annotations

import ast
import dis
import functools
import importlib.util
import os
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path

from hyperfarm.errors import BundleError
from hyperfarm.syntax import parse

DATA_LIMIT_BYTES = 1 << 20
"""The other files of one package travel if they are smaller than this, all together."""

_NEVER = frozenset({"__main__", "__mp_main__", "hyperfarm", "hyperopt", "cloudpickle"})
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
_BYPRODUCTS = (".pyc", ".pyo", ".log", ".tmp", ".lock", ".pid", "~", *EXTENSION_SUFFIXES)
_EXCUSES = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import: `module` in full, `names` as in `from module import names`.

    `optional` is true inside a `try` that catches ImportError.
    """

    module: str
    names: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Sources:
    """`files`: content by path relative to the import root, `/` between folders, sorted.

    `foreign`: top-level names of the third-party modules that the files that are reached import.
    """

    files: dict[str, bytes]
    foreign: frozenset[str]


def find_sources(
    *,
    modules: Iterable[str] = (),
    imports: Iterable[Import] = (),
    include: Iterable[Path] = (),
    folder: Path,
) -> Sources:
    """Collect the user's own files behind `modules` and `imports`, and what these import in turn.

    `modules` must be importable on another machine; `imports` that are not found are left out.
    `folder` is searched after `sys.path`; what `include` names (files or folders) is taken relative to
    it and placed relative to it, or at the top if it lies elsewhere. A package travels as a whole.

    Raises BundleError: an own module lies in a zip file or is compiled, has no file, or an included path
    does not exist.
    """
    finder = _Finder(folder)
    for path in include:
        finder.include(Path(path))
    for name in modules:
        finder.need(name, certain=True)
    for item in imports:
        finder.follow(item)
    finder.finish()
    return Sources(files=dict(sorted(finder.files.items())), foreign=frozenset(finder.foreign))


def imports_of_source(source: str | bytes, package: str) -> list[Import]:
    """Return every import in a module's text, also those inside functions; [] if it is not valid Python.

    `package` is the package that relative imports start from ("" if none). `import_module("name")` and
    `__import__("name")` with a literal name count; the body of `if TYPE_CHECKING:` does not.
    """
    try:
        tree = parse(source)
    except (SyntaxError, ValueError):
        return []
    visitor = _ImportVisitor(package)
    visitor.visit(tree)
    return visitor.found


def imports_of_code(code: types.CodeType, package: str) -> list[Import]:
    """Return the import statements of a code object and of those nested in it."""
    found: list[Import] = []
    steps = [s for s in dis.get_instructions(code) if s.opname not in {"EXTENDED_ARG", "CACHE"}]
    for place, step in enumerate(steps):
        if step.opname != "IMPORT_NAME" or place < 2:
            continue
        level, names = steps[place - 2].argval, steps[place - 1].argval
        module = _absolute(str(step.argval), level if isinstance(level, int) else 0, package)
        if module:
            found.append(Import(module=module, names=tuple(names or ())))
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            found += imports_of_code(const, package)
    return found


def main_script() -> Path | None:
    """The file that was run, if it is a user's script and not a program such as pytest or hyperfarm."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None) or ""
    is_ours = (getattr(main, "__package__", None) or "").partition(".")[0] == "hyperfarm"
    return Path(os.path.abspath(file)) if file.endswith(".py") and is_own(file) and not is_ours else None


def root_of(script: Path) -> Path:
    """The folder of a script, or for `python -m a.b` the one that holds package `a`."""
    package = getattr(sys.modules["__main__"], "__package__", None) or ""
    return script.parents[len(package.split(".")) if package and script == main_script() else 0]


def imports_of_script(script: Path) -> list[Import]:
    """Return the imports of the script that `__main__` runs."""
    return imports_of_source(_read(script), getattr(sys.modules.get("__main__"), "__package__", None) or "")


def is_own(path: str | Path) -> bool:
    """True if a path lies outside the standard library and outside every site-packages folder."""
    spot = Path(os.path.abspath(path))
    if {"site-packages", "dist-packages"} & set(spot.parts):
        return False
    return not any(spot.is_relative_to(home) for home in _library_folders())


def place_of(error: BaseException) -> str:
    """Where the user's own code went wrong, as ` (line 3 of FILE)`; "" for an error that came from nowhere."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno} of {error.filename})"
    here = str(Path(__file__).parent)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(here)]
    last = ([one for one in frames if is_own(one.filename)] or frames)[-1:]
    return f" (line {last[0].lineno} of {last[0].filename})" if last else ""


@functools.cache
def _library_folders() -> frozenset[Path]:
    paths = sysconfig.get_paths()
    homes = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    homes |= {os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix) if prefix != "/"}
    return frozenset(Path(spot) for home in homes for spot in (home, os.path.realpath(home)))


def _absolute(module: str, level: int, package: str) -> str:
    """The full name behind a relative import; "" where there is none."""
    if level == 0:
        return module
    parts = package.split(".") if package else []
    if level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - level + 1], *([module] if module else [])])


class _ImportVisitor(ast.NodeVisitor):
    def __init__(self, package: str) -> None:
        self.found: list[Import] = []
        self._package = package
        self._tries = 0

    def _add(self, module: str, names: Iterable[str] = ()) -> None:
        if module:
            self.found.append(Import(module=module, names=tuple(names), optional=self._tries > 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = _absolute(node.module or "", node.level, self._package)
        self._add(module, [alias.name for alias in node.names])

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if (
            name in {"import_module", "__import__"}
            and isinstance(first, ast.Constant)
            and isinstance(first.value, str)
        ):
            bare = first.value.lstrip(".")
            self._add(_absolute(bare, len(first.value) - len(bare), self._package))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        body: list[ast.stmt] = [] if name == "TYPE_CHECKING" else node.body
        self.visit(test)
        for child in [*body, *node.orelse]:
            self.visit(child)

    def visit_Try(self, node: ast.Try) -> None:
        caught = {name for handler in node.handlers for name in _caught(handler)}
        excused = bool(caught & _EXCUSES)
        self._tries += excused
        for child in node.body:
            self.visit(child)
        self._tries -= excused
        for other in [*node.handlers, *node.orelse, *node.finalbody]:
            self.visit(other)


def _caught(handler: ast.ExceptHandler) -> Iterator[str]:
    if handler.type is None:
        yield "BaseException"
    else:
        yield from (n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name))


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a module lies: its file, and its folders if it is a package."""

    file: Path | None = None
    folders: tuple[Path, ...] = ()


class _Finder:
    """Follows imports through the user's files and collects them."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.foreign: set[str] = set()
        self._folder = folder
        self._tops: dict[str, _Place | None] = {}
        self._scanned: set[str] = set()
        self._todo: list[tuple[bytes, str]] = []

    def follow(self, item: Import) -> None:
        """Add what one import statement names: the module, and the names that are submodules."""
        self.need(item.module, optional=item.optional)
        for name in item.names:
            if name != "*":
                self.need(f"{item.module}.{name}", optional=item.optional)

    def finish(self) -> None:
        """Follow the imports of all files reached, until there are no new ones."""
        while self._todo:
            source, package = self._todo.pop()
            for item in imports_of_source(source, package):
                self.follow(item)

    def need(self, name: str, *, optional: bool = False, certain: bool = False) -> None:
        """Add module `name` if it is the user's own. `certain`: it must be found."""
        top, *rest = name.split(".")
        if top in _NEVER or not top:
            return
        if top not in self._tops:
            self._tops[top] = self._locate(top, optional=optional, certain=certain)
        place = self._tops[top]
        if place is None:
            return
        self._scan(top, place)
        done = top
        for part in rest:
            done = f"{done}.{part}"
            place = _inside(done, part, place.folders, optional=optional)
            if place is None:
                return
            self._scan(done, place)

    def include(self, path: Path) -> None:
        """Add a file, or all files of a folder, that the user asked for."""
        spot = Path(os.path.abspath(self._folder / path))
        if not spot.exists():
            raise BundleError(f"There is no file or folder {path} to include (looked for {spot}).")
        home = Path(os.path.abspath(self._folder))
        base = home if spot.is_relative_to(home) else spot.parent
        for file in [spot] if spot.is_file() else _walk(spot):
            if spot.is_file() or not file.name.endswith(_BYPRODUCTS):
                name = file.relative_to(base).as_posix()
                self.files[name] = _read(file)
                if file.suffix == ".py":
                    self._todo.append((self.files[name], ".".join(Path(name).parent.parts)))

    def _locate(self, top: str, *, optional: bool, certain: bool) -> _Place | None:
        spec = _spec(top, self._folder)
        origin = spec.origin if spec and spec.has_location else None
        roots = list(spec.submodule_search_locations or ()) if spec else []
        if not (is_own(origin) if origin else any(map(is_own, roots))):
            if certain and spec is None:
                raise BundleError(
                    f"The objective uses module {top}, which has no source file that could travel: "
                    f"put it into a file {top}.py."
                )
            if spec is not None and top not in sys.stdlib_module_names:
                self.foreign.add(top)
            return None
        file = Path(origin) if origin else None
        if file and file.suffix != ".py":
            return _refuse(top, file, "compiled", optional=optional)
        for spot in (origin, *roots):
            if spot and not Path(spot).exists():
                return _refuse(top, Path(spot), "in a zip file", optional=optional)
        return self._take(top, _Place(file=file, folders=tuple(Path(r) for r in roots if is_own(r))))

    def _take(self, top: str, place: _Place) -> _Place:
        """Put a top-level module or a whole package into `files`."""
        data: dict[str, Path] = {}
        for root in place.folders:
            for file in _walk(root):
                name = f"{top}/{file.relative_to(root).as_posix()}"
                if file.suffix == ".py":
                    self.files.setdefault(name, _read(file))
                elif not file.name.endswith(_BYPRODUCTS):
                    data.setdefault(name, file)
        if sum(file.stat().st_size for file in data.values()) < DATA_LIMIT_BYTES:
            self.files.update((name, _read(file)) for name, file in data.items())
        if place.file and not place.folders:
            self.files[f"{top}.py"] = _read(place.file)
        return place

    def _scan(self, name: str, place: _Place) -> None:
        if name not in self._scanned and place.file:
            package = name if place.folders else name.rpartition(".")[0]
            self._todo.append((_read(place.file), package))
        self._scanned.add(name)


def _spec(top: str, folder: Path) -> ModuleSpec | None:
    """Find a top-level module. Nothing is imported: only submodules make find_spec import parents."""
    spec: ModuleSpec | None = None
    try:
        spec = importlib.util.find_spec(top)
    except Exception:  # noqa: BLE001  (`__spec__` is None, or a finder of the user's fails)
        file = getattr(sys.modules.get(top), "__file__", None)
        if file:
            spec = importlib.util.spec_from_file_location(top, file)
    return spec or PathFinder.find_spec(top, [str(folder)])


def _inside(name: str, part: str, folders: tuple[Path, ...], *, optional: bool) -> _Place | None:
    """Find submodule `part` in the folders of its package, in Python's order; None if it is no module."""
    portions: list[Path] = []
    for folder in folders:
        if (folder / part / "__init__.py").is_file():
            return _Place(file=folder / part / "__init__.py", folders=(folder / part,))
        for suffix in EXTENSION_SUFFIXES:
            if (folder / f"{part}{suffix}").is_file():
                return _refuse(name, folder / f"{part}{suffix}", "compiled", optional=optional)
        if (folder / f"{part}.py").is_file():
            return _Place(file=folder / f"{part}.py")
        if (folder / part).is_dir():
            portions.append(folder / part)
    return _Place(folders=tuple(portions)) if portions else None


def _refuse(name: str, file: Path, what: str, *, optional: bool) -> _Place | None:
    """Raise for a module that has no plain source file; None if its importer can do without it."""
    if optional:
        return None
    raise BundleError(
        f"Module {name} is {what} ({file}) and cannot travel with the objective: "
        "install it as a package on every host."
    )


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted; hidden ones, caches and virtual environments left out."""
    seen: set[str] = set()
    for here, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # A link that leads back up.
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_skipped(Path(here) / name))
        for name in sorted(files):
            file = Path(here) / name
            if not name.startswith(".") and file.is_file():
                yield file


def _is_skipped(folder: Path) -> bool:
    name = folder.name
    return (
        name in _SKIPPED_FOLDERS
        or name.startswith(".")
        or name.endswith(".egg-info")
        or (folder / "pyvenv.cfg").exists()
        or (folder / "conda-meta").exists()
    )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise BundleError(f"Cannot read {file}, which the objective needs: {exc.strerror}.") from exc

"""The identity of values, functions and spaces: equal in every process, whatever the hash seed.

Pickles cannot serve: those of one script differ from run to run (measured). A function that is importable
by name counts as its name, because its file is hashed elsewhere. Any other function counts as what it
does: its code, defaults, closure, and the globals that it names. So a comment, or an edit elsewhere in
the script (another `max_evals`), changes nothing.
"""

from __future__ import annotations

import contextlib
import copyreg
import dis
import functools
import hashlib
import random
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

DEPTH_LIMIT = 64
"""Values nested deeper than this count as the names of their types."""

_ATOMS = frozenset({type(None), bool, int, float, complex, type(Ellipsis)})
_PLAIN = frozenset({type(None), bool, int, float, str})
_BUILTIN_FUNCTIONS = (types.BuiltinFunctionType, types.MethodWrapperType)
_GLOBAL_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_MEMBER_WRAPPERS = (staticmethod, classmethod)
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
# Their instances hold counters, random weights and handles that differ from run to run.
_OPAQUE_PACKAGES = frozenset({"jax", "keras", "tensorflow", "torch"})
# What Python or copyreg adds to a class, and what cannot change how it behaves.
_CLASS_NOISE = frozenset(
    {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "_abc_impl", "__slotnames__"}
    | {"__annotations__", "__annotate_func__", "__annotations_cache__", "__conditional_annotations__"}
    | {"__static_attributes__", "__firstlineno__", "__dataclass_fields__", "__dataclass_params__"}
)


def fingerprint(value: object) -> str:
    """Return the identity of a value: 64 hex digits.

    Equal for equal values in all processes of one minor version of Python; dicts and sets count without
    their order. Numbers, text, containers, arrays, functions, partials, classes, values of the standard
    library and objects with `__dict__` or slots count with all that they hold. Random generators, objects
    of jax, keras, tensorflow and torch, and other objects without readable state count as their types.
    """
    return _Fingerprinter().run(value).hex()


def fingerprint_space(space: object) -> str:
    """Return the identity of a search space: its graph, and the fingerprints of the literals in it.

    Symbols that a user added with `hyperopt.pyll.scope.define` count with their code.
    """
    from hyperopt.pyll.base import Literal, as_apply, dfs

    nodes = list(dfs(as_apply(space)))
    place = {id(node): index for index, node in enumerate(nodes)}
    lines: list[object] = []
    for node in nodes:
        named = sorted((str(key), place[id(value)]) for key, value in node.named_args)
        held = node.obj if isinstance(node, Literal) else None
        lines.append((node.name, [place[id(value)] for value in node.pos_args], named, held))
    return fingerprint((lines, user_symbols(space)))


def user_symbols(space: object) -> dict[str, Callable[..., Any]]:
    """Return the functions that a space names and that hyperopt does not bring itself."""
    from hyperopt.pyll.base import as_apply, dfs, scope

    names = {node.name for node in dfs(as_apply(space))}
    found = {name: scope._impls[name] for name in sorted(names) if name in scope._impls}
    return {name: fn for name, fn in found.items() if not _is_library(fn)}


def define_symbols(symbols: dict[str, Callable[..., Any]]) -> None:
    """Bring a user's own symbols to the hyperopt of this process."""
    from hyperopt.pyll.base import scope

    for name, fn in symbols.items():
        if name not in scope._impls:
            scope.define(fn)
        scope._impls[name] = fn


def name_of(fn: Any) -> str:
    """Return `module:qualname` of a callable, for people; of a partial, that of its function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{getattr(named, '__module__', None) or '__main__'}:{named.__qualname__}"


def is_by_value(thing: Any) -> bool:
    """True for a function or class that no other process can import by its name."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    if module is None or thing.__module__ == "__main__":
        return True
    found: Any = module
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not thing


def used_globals(code: types.CodeType) -> set[str]:
    """Return the names of the globals that a code object and those nested in it read."""
    steps = dis.get_instructions(code)
    names = {str(step.argval) for step in steps if step.opname in _GLOBAL_READS}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= used_globals(const)
    return names


def cells(fn: types.FunctionType) -> dict[str, object]:
    """Return the closure variables of a function that have a value, by name."""
    held: dict[str, object] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # A cell that is still empty.
            held[name] = cell.cell_contents
    return held


def attributes(value: object) -> dict[str, object]:
    """Return what an object holds in its `__dict__` and in the slots of its classes."""
    held = dict(getattr(value, "__dict__", None) or {})
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name in {"__dict__", "__weakref__"}:
                continue
            stored = f"_{kind.__name__.lstrip('_')}{name}" if name[:2] == "__" != name[-2:] else name
            with contextlib.suppress(AttributeError):
                held[stored] = getattr(value, stored)
    return held


@dataclass(frozen=True, kw_only=True)
class Held:
    """One thing that a value holds, and the words to find it. `is_variable`: a person wrote it down there."""

    label: str
    value: object
    is_variable: bool = False


def held_by(value: Any) -> Iterator[Held]:
    """Name what travels inside a value: globals, closure, arguments, attributes, items."""
    if isinstance(value, types.FunctionType):
        if is_by_value(value):
            yield from _held_by_function(value)
    elif isinstance(value, functools.partial):
        of = f"of the partial of {getattr(value.func, '__qualname__', type_name(value.func))}"
        yield Held(label=f"the function {of}", value=value.func)
        for index, held in enumerate(value.args, 1):
            yield Held(label=f"argument {index} {of}", value=held, is_variable=True)
        for name, held in value.keywords.items():
            yield Held(label=f"argument {name!r} {of}", value=held, is_variable=True)
    elif isinstance(value, types.MethodType):
        yield Held(label=f"the object of method {value.__qualname__}", value=value.__self__)
        yield Held(label=f"method {value.__qualname__}", value=value.__func__)
    elif isinstance(value, type):
        if is_by_value(value):
            for name, held in value.__dict__.items():
                bare = getattr(held, "__func__", held)
                yield Held(label=f"attribute {name!r} of class {value.__qualname__}", value=bare)
    elif isinstance(value, dict):
        yield from (Held(label=f"item {key!r}", value=held) for key, held in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (Held(label=f"item {index}", value=held) for index, held in enumerate(value))
    elif isinstance(value, functools._lru_cache_wrapper):
        yield Held(label="the cached function", value=value.__wrapped__)
    elif not isinstance(value, types.ModuleType | str | bytes | np.ndarray):
        for name, held in attributes(value).items():
            yield Held(label=f"attribute {name!r} of {type_name(value)}", value=held)
        yield Held(label=f"class {type(value).__qualname__}", value=type(value))


def _held_by_function(fn: types.FunctionType) -> Iterator[Held]:
    of = f"of function {fn.__qualname__!r}"
    for name in sorted(used_globals(fn.__code__)):
        if name in fn.__globals__:
            yield Held(label=f"global variable {name!r} {of}", value=fn.__globals__[name], is_variable=True)
    for name, held in cells(fn).items():
        yield Held(label=f"closure variable {name!r} {of}", value=held, is_variable=True)
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    defaults = fn.__defaults__ or ()
    given = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    for name, held in {**given, **(fn.__kwdefaults__ or {})}.items():
        yield Held(label=f"the default of argument {name!r} {of}", value=held, is_variable=True)
    for name, held in fn.__dict__.items():
        yield Held(label=f"attribute {name!r} {of}", value=held)


def type_name(value: object) -> str:
    """Return `module.qualname` of a value's type, without `builtins.`."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _state(value: object) -> object:
    """What an object would be pickled with, where its class says so; else its attributes."""
    own = getattr(type(value), "__getstate__", None)
    if own is not None and own is not getattr(object, "__getstate__", None):
        with contextlib.suppress(Exception):
            return own(value)
    return attributes(value)


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_library(fn: object) -> bool:
    """True for a function of hyperopt, NumPy, SciPy or the standard library."""
    top = _top(getattr(fn, "__module__", None))
    return top in {"hyperopt", "numpy", "scipy"} or top in sys.stdlib_module_names


def _hash(tag: str, *parts: bytes) -> bytes:
    """SHA-256 over a tag and parts, each behind its length, so that no two lists of parts look alike."""
    total = hashlib.sha256()
    for part in (tag.encode(), *parts):
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.digest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Fingerprinter:
    """One walk over a value. Globals are digested once each, beside the tree: they are often cyclic."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[bytes, object]] = {}  # The object is kept, or its id could come again.
        self._open: dict[int, int] = {}
        self._lowest = sys.maxsize
        self._globals: dict[tuple[str, str], bytes] = {}
        self._pending: list[tuple[str, str, object]] = []

    def run(self, value: object) -> bytes:
        root = self._digest(value)
        while self._pending:
            module, name, held = self._pending.pop()
            if (module, name) not in self._globals:
                self._globals[module, name] = self._digest(held)
        table = [_hash("global", _text(m), _text(n), d) for (m, n), d in sorted(self._globals.items())]
        return _hash("value", root, *table)

    def _digest(self, value: Any) -> bytes:
        if type(value) in _ATOMS:
            return _hash(type_name(value), repr(value).encode())
        if type(value) is str:
            return _hash("str", _text(value))
        key = id(value)
        if key in self._done:
            return self._done[key][0]
        if key in self._open:  # Counted upwards from here, so that it does not matter where the walk began.
            self._lowest = min(self._lowest, self._open[key])
            return _hash("cycle", str(len(self._open) - self._open[key]).encode())
        if len(self._open) >= DEPTH_LIMIT:
            return _hash("deep", _text(type_name(value)))
        return self._enter(key, value)

    def _enter(self, key: int, value: Any) -> bytes:
        depth = len(self._open)
        before, self._lowest = self._lowest, sys.maxsize
        self._open[key] = depth
        try:
            digest = self._content(value)
        finally:
            del self._open[key]
        if self._lowest >= depth:  # Nothing in it points above it: the digest holds wherever it stands.
            self._done[key] = (digest, value)
            self._lowest = before
        else:
            self._lowest = min(before, self._lowest)
        return digest

    def _content(self, value: Any) -> bytes:
        if type(value) in {list, tuple, set, frozenset, dict, bytes, bytearray, types.MappingProxyType}:
            return _hash(type_name(value), *self._builtin(value))
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asarray(value))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.MethodType):
            return _hash("method", self._digest(value.__func__), self._digest(value.__self__))
        if isinstance(value, types.ModuleType):
            return _hash("module", _text(value.__name__))
        if isinstance(value, functools.partial):
            held = (value.func, value.args, value.keywords, value.__dict__)
            return _hash("partial", *map(self._digest, held))
        if isinstance(value, _MEMBER_WRAPPERS):
            return _hash(type_name(value), self._digest(value.__func__))
        if isinstance(value, property):
            return _hash("property", *map(self._digest, (value.fget, value.fset, value.fdel)))
        if isinstance(value, _BUILTIN_FUNCTIONS):
            owner = None if isinstance(value.__self__, types.ModuleType) else value.__self__
            module = getattr(value, "__module__", None) or ""
            return _hash("builtin", _text(module), _text(value.__qualname__), self._digest(owner))
        if isinstance(value, functools._lru_cache_wrapper):
            return _hash("cached", *map(self._digest, (value.__wrapped__, value.cache_parameters())))
        return self._instance(value)

    def _builtin(self, value: Any) -> Iterator[bytes]:
        """What a container or text of a built-in type (or of a type derived from one) holds."""
        if isinstance(value, dict | types.MappingProxyType):
            yield from sorted(_hash("item", self._digest(k), self._digest(v)) for k, v in value.items())
        elif isinstance(value, set | frozenset):
            yield from sorted(self._digest(item) for item in value)
        elif isinstance(value, bytes | bytearray):
            yield bytes(value)
        elif all(type(item) in _PLAIN for item in value):  # A million numbers, say.
            yield from (b"plain", _text(repr(list(value))))
        else:
            yield from (self._digest(item) for item in value)

    def _array(self, array: np.ndarray[Any, Any]) -> bytes:
        head = (_text(str(array.dtype.descr)), str(array.shape).encode())
        if array.dtype.hasobject:
            return _hash("objects", *head, self._digest(array.tolist()))
        return _hash("array", *head, hashlib.sha256(array.tobytes()).digest())

    def _class(self, cls: type) -> bytes:
        head = (_text(cls.__module__), _text(cls.__qualname__))
        if not is_by_value(cls):
            return _hash("class", *head)
        members = {name: value for name, value in cls.__dict__.items() if name not in _CLASS_NOISE}
        return _hash("class body", *head, self._digest(cls.__bases__), self._digest(members))

    def _function(self, fn: types.FunctionType) -> bytes:
        head = (_text(fn.__module__ or ""), _text(fn.__qualname__))
        if not is_by_value(fn):
            return _hash("function", *head)
        for name in sorted(used_globals(fn.__code__)):
            if name in fn.__globals__:
                space = str(fn.__globals__.get("__name__", ""))
                self._pending.append((space, name, fn.__globals__[name]))
        held = (fn.__code__, fn.__defaults__, fn.__kwdefaults__, cells(fn), fn.__dict__)
        return _hash("function body", *head, *map(self._digest, held))

    def _code(self, code: types.CodeType) -> bytes:
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        table = getattr(code, "co_exceptiontable", b"")
        return _hash("code", code.co_code, table, *map(self._digest, (code.co_consts, names, counts)))

    def _instance(self, value: Any) -> bytes:
        kind, top = type(value), _top(type(value).__module__)
        head = ("instance", self._digest(kind))
        if isinstance(value, _RANDOM) or top in _OPAQUE_PACKAGES:
            return _hash(*head)
        if top in sys.stdlib_module_names or top == "numpy":
            return _hash(*head, *self._reduced(value))
        parts: list[bytes] = []
        if isinstance(value, list | tuple | set | frozenset | dict | bytes | bytearray):
            parts += self._builtin(value)
        bases: tuple[Callable[[Any], object], ...] = (str, int, float, complex)
        parts += [self._digest(base(value)) for base in bases if isinstance(value, base)]  # type: ignore[arg-type]
        return _hash(*head, self._digest(_state(value)), *parts)

    def _reduced(self, value: Any) -> Iterator[bytes]:
        """A value of the standard library or NumPy, by what it would be rebuilt from."""
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            reduced: Any = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001  (a lock, a socket, a file: the type is all we can tell)
            return
        if isinstance(reduced, str):
            yield _text(reduced)
            return
        make, args, state, items, pairs = (*reduced, None, None, None, None)[:5]
        yield from map(self._digest, (make, args, state, list(items or ()), list(pairs or ())))

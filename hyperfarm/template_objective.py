"""What a trial runs of a search with templates: data(), once per process, and the rewritten model function.

It travels to the workers, so nothing here needs the script, its file, hyperas or hyperopt; and nothing of
hyperfarm when it is loaded, so that the module itself can be pickled along for a worker of hyperopt's own.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMAT = 1
"""Counts how objectives are pickled: after a change of it the code of a running search must be sent anew."""
INNER = "hyperfarm: an option with templates in it"
"""The key of an option, in a dict that also holds the values of the templates inside the option."""
MODEL = "model"
"""The key of a result under which hyperas's users return the trained model."""

Wire = tuple[str, str]
"""Where a name of a rewritten function comes from: (kind, key), the kind being one of those below."""
POINT, CHOSEN, KEEP, DATA, FUNCTION = "point", "chosen", "keep", "data", "function"


class Option:
    """An option of a choice that is no plain value: known by its place, made where a trial needs it.

    Two are equal if they have the same place and text. `build`, which makes the value from a point, does not travel.
    """

    def __init__(
        self, index: int, text: str, build: Callable[[Mapping[str, Any]], Any] | None = None
    ) -> None:
        self.index, self.text, self.build = index, text, build

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Option) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash(self.__getstate__())

    def __getstate__(self) -> tuple[int, str]:  # What its identity counts (fingerprint.py).
        return self.index, self.text

    def __reduce__(self) -> Any:
        return Option, self.__getstate__()


def chosen(value: Any, *options: Callable[[], Any] | None, many: Callable[[], Any] | None = None) -> Any:
    """What a rewritten choice evaluates to: a plain value as it is, any other option made now."""
    if not isinstance(value, Option):
        return value
    if many is not None:
        return list(many())[value.index]
    option = options[value.index]
    assert option is not None
    return option()


def flat_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter's value by its name, those of templates inside options too.

    Containers are copies: what a trial does to them is not seen by the next one.
    """
    flat: dict[str, Any] = {}
    for name, value in point.items():
        if isinstance(value, Mapping) and INNER in value:
            inner = {key: one for key, one in value.items() if key != INNER}
            flat |= {name: value[INNER], **flat_point(inner)}
        else:
            flat[name] = value if isinstance(value, Option) else copy.deepcopy(value)
    return flat


@dataclass(frozen=True, kw_only=True)
class Linked:
    """A rewritten function or class. `maker` defines it anew, for one trial, and returns it.

    `wires` says what the names mean that the rewritten code did not have, or that mean something else there.
    """

    maker: types.FunctionType
    wires: tuple[tuple[str, Wire], ...]


@dataclass(frozen=True, kw_only=True)
class Data:
    """How data() is called, and what its results are called.

    `function` is the user's own; or `linked` is one that also returns its local variables, of which those
    in `kept` are used. `returned` are the names of what it returns, None if it returns anything else.
    """

    function: Callable[[], Any] | None
    linked: Linked | None
    returned: tuple[str, ...] | None
    kept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What data() has returned, and the names that are known of it."""

    value: Any
    names: Mapping[str, Any]


class _Cache:
    """The data of the search that this process works for, by the identity of its objective: one at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: tuple[str, Loaded] | None = None

    def get(self, identity: str, load: Callable[[], Loaded]) -> Loaded:
        """Return the data; the first call for an identity loads them, and the others wait for it."""
        with self._lock:
            if self._held is None or self._held[0] != identity:
                self._held = None
                self._held = (identity, load())
            return self._held[1]

    def forget(self, identity: str) -> None:
        with self._lock:
            if self._held is not None and self._held[0] == identity:
                self._held = None

    def __reduce__(self) -> Any:  # Data never travel.
        return _Cache, ()


_cache = _Cache()


class TemplateObjective:
    """The objective of a search with templates: callable with a point of its space.

    `functions` by key, `model` being the key of the model function; `place` says where that stands. `texts` are
    the source files, by the names that the code has for them: tracebacks show true lines where there is no such
    file. `identity` is new for each search. What the objective counts as (fingerprint.py) is code alone.
    """

    def __init__(
        self,
        *,
        model: str,
        place: str,
        functions: Mapping[str, Linked],
        data: Data,
        texts: Mapping[str, str],
        identity: str,
    ) -> None:
        self.model, self.place, self.functions, self.data = model, place, functions, data
        self.texts, self.identity = texts, identity
        # People read these two as the name of the bundle.
        self.__module__, self.__qualname__ = functions[model].maker.__module__, model

    def __getstate__(self) -> Any:
        return FORMAT, self.model, self.functions, self.data

    def __reduce__(self) -> Any:
        parts = (self.model, self.place, self.functions, self.data, self.texts, self.identity)
        return _rebuilt, (_Names(), *parts)

    def __call__(self, point: Mapping[str, Any]) -> Any:
        """Run one trial. A returned model with a `save` method is stored with the trial, if a farm runs it."""
        data = _cache.get(self.identity, self._run_data)
        functions = _made(self.functions, flat_point(point), data.names)
        model = functions[self.model]
        bound = self._arguments(model, data)
        returned = model(*bound.args, **bound.kwargs)
        if returned is None:
            raise _error(
                "InvalidResult",
                f"{self.place}: {self.model} returned nothing; it must return a number, or a dict with 'loss' and "
                "'status'",
            )
        return _stored(returned)

    def forget(self) -> None:
        """Give the data back that this process has loaded for the search."""
        _cache.forget(self.identity)

    def _run_data(self) -> Loaded:
        data, names = self.data, {}
        if data.linked is not None:
            value, variables = _made({DATA: data.linked}, {}, {})[DATA]()
            names = {name: variables[name] for name in data.kept if name in variables}
        else:
            assert data.function is not None
            value = data.function()
        if data.returned is not None:
            several = value if len(data.returned) > 1 else (value,)
            names |= dict(zip(data.returned, several, strict=True))
        return Loaded(value=value, names=names)

    def _arguments(self, model: Callable[..., Any], data: Loaded) -> inspect.BoundArguments:
        """Bind the model's parameters to the data by name where the names are known, else by position."""
        signature = inspect.signature(model)
        asked = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        needed = [
            one.name for one in asked if one.default is one.empty and one.kind is not one.VAR_POSITIONAL
        ]
        by_name = all(name in data.names for name in needed)
        is_open = any(one.kind is one.VAR_POSITIONAL for one in asked)
        if by_name and self.data.returned is not None and not is_open:
            return _bound(signature, data.names, needed, self.data.returned)
        is_whole = len(asked) == 1 and not is_open  # One parameter gets all that data() returns.
        values = data.value if isinstance(data.value, tuple) and not is_whole else (data.value,)
        try:
            return signature.bind(*values)
        except TypeError:
            if by_name:
                return _bound(signature, data.names, needed, ())
        given = f"{len(values)} values" if isinstance(data.value, tuple) else "one value"
        raise _error(
            "UsageError",
            f"{self.place}: {self.model} takes {', '.join(needed) or 'no arguments'}, but data() returns {given}; "
            "give its parameters the names of what data() returns",
        )


def _bound(
    signature: inspect.Signature, names: Mapping[str, Any], needed: Sequence[str], optional: Sequence[str]
) -> inspect.BoundArguments:
    bound = signature.bind_partial()
    for name in signature.parameters:
        if name in needed or name in optional:
            bound.arguments[name] = names[name]
    return bound


def _made(
    functions: Mapping[str, Linked], point: Mapping[str, Any], names: Mapping[str, Any]
) -> dict[str, Any]:
    """Define all functions anew: each trial has its own, which see its point and each other."""
    cells: dict[Wire, types.CellType] = {
        (POINT, ""): types.CellType(point),
        (CHOSEN, ""): types.CellType(chosen),
        (KEEP, ""): types.CellType(_with_variables),
    }
    cells |= {(DATA, name): types.CellType(value) for name, value in names.items()}
    cells |= {(FUNCTION, key): types.CellType() for key in functions}
    made = {key: _maker(linked, cells)() for key, linked in functions.items()}
    for key, function in made.items():
        cells[FUNCTION, key].cell_contents = function
    return made


def _maker(linked: Linked, cells: Mapping[Wire, types.CellType]) -> types.FunctionType:
    """The maker with this trial's meanings of its names; one without a meaning stays undefined."""
    maker, wires = linked.maker, dict(linked.wires)
    before = dict(zip(maker.__code__.co_freevars, maker.__closure__ or (), strict=True))
    closure = tuple(
        cells.get(wires[name], types.CellType()) if name in wires else cell for name, cell in before.items()
    )
    return types.FunctionType(maker.__code__, maker.__globals__, maker.__name__, None, closure)


def _with_variables(value: Any, variables: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """What the rewritten data() returns."""
    return value, variables


def _stored(returned: Any) -> Any:
    """The result without its model, which is stored with the trial; as it is where no farm runs the trial."""
    trial = _trial()
    if trial is None or not isinstance(returned, Mapping):
        return returned
    model = returned.get(MODEL)
    if not callable(getattr(model, "save", None)) or isinstance(model, type):
        return returned
    try:
        trial.save_model(model)
    except OSError:
        raise  # The database or the disk: another attempt may have more luck.
    except Exception as error:  # noqa: BLE001 - a trained model that cannot be saved must not cost the result
        print(
            f"hyperfarm: the model of this trial could not be saved: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
    return {key: value for key, value in returned.items() if key != MODEL}


def _trial() -> Any:
    """hyperfarm.trial inside of a trial of the farm, None elsewhere."""
    try:
        from hyperfarm import trial
    except ImportError:  # A worker of hyperopt's own.
        return None
    return None if trial.id is None else trial


def _error(kind: str, sentence: str) -> Exception:
    try:
        from hyperfarm import errors
    except ImportError:
        return ValueError(sentence)
    made: Exception = getattr(errors, kind)(sentence)
    return made


class _Names:
    """Unpickled before anything of the user's: their modules may ask for hyperas, as the script does."""

    def __reduce__(self) -> Any:
        from hyperfarm import template_install

        return (template_install.install if template_install.is_installed() else bool), ()


def _rebuilt(
    _names: Any,
    model: str,
    place: str,
    functions: Mapping[str, Linked],
    data: Data,
    texts: Mapping[str, str],
    identity: str,
) -> TemplateObjective:
    for path, text in texts.items():
        # Without a time of change the entry is never dropped for the lack of a file (linecache.checkcache).
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    return TemplateObjective(
        model=model, place=place, functions=functions, data=data, texts=texts, identity=identity
    )

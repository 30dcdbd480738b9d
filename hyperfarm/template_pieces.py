"""Gathers what a model function is made of: itself, and what the user wrote that it calls by name."""

from __future__ import annotations

import builtins
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperfarm.errors import UsageError
from hyperfarm.fingerprint import used_globals
from hyperfarm.template_compile import compiled
from hyperfarm.template_data import DataSource
from hyperfarm.template_find import DISTRIBUTIONS, Definition, Resolve, Template, find_templates, wrong
from hyperfarm.template_objective import CHOSEN, DATA, FUNCTION, POINT, Linked, Wire
from hyperfarm.template_rewrite import CHOSEN_NAME, POINT_NAME, free_name, rewrite
from hyperfarm.template_source import Source, find_source, is_users

_INTERNAL = "_hyperfarm_"


@dataclass(eq=False, kw_only=True)
class Piece:
    """A function or class that may have to be rewritten, under a `key` of its own.

    `uses` are the names that it reads from outside, `calls` those of them that are other pieces. If it
    `sees_data`, data()'s variables are visible in it. `wires`: see `Linked`.
    """

    key: str
    source: Source
    templates: list[Template]
    uses: set[str]
    sees_data: bool
    calls: dict[str, Piece] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)


def gather(model: Callable[..., Any], functions: Sequence[Any], notebook: str | None) -> list[Piece]:
    """Return the model's piece, then those of `functions`, then those of what any of them names.

    Libraries are left out, and so is what is only reached through a module or an object. Raises UsageError for a
    source that cannot be found, if it was asked for, and for double braces that are no template.
    """
    first = find_source(model, notebook)
    pieces: dict[int, Piece] = {}
    things: list[Any] = [model, *functions]  # Kept to the end: the keys are ids.
    place = 0
    while place < len(things):
        thing, is_asked_for = things[place], place <= len(functions)
        place += 1
        bare = _bare(thing)
        if id(bare) in pieces or (place > 1 and not is_users(bare)):
            continue
        try:
            source = find_source(thing, notebook) if pieces else first
        except UsageError:
            if is_asked_for and isinstance(bare, types.FunctionType) and bare.__name__ != "<lambda>":
                raise
            continue
        sees_data = is_asked_for or source.namespace is first.namespace
        taken = {piece.key for piece in pieces.values()}
        piece = pieces[id(bare)] = _piece(source, taken, sees_data=sees_data)
        things += [value for name in sorted(piece.uses) if (value := _value(source, name)) is not None]
    listed = {_bare(one).__name__: pieces[id(_bare(one))] for one in functions if id(_bare(one)) in pieces}
    for piece in pieces.values():
        for name in piece.uses:
            called = pieces.get(id(_bare(_value(piece.source, name))), listed.get(name))
            if called is not None and called is not piece:
                piece.calls[name] = called
    return list(pieces.values())


def touched(pieces: Sequence[Piece], data: DataSource) -> list[Piece]:
    """Return the pieces to be rewritten, the model first: all with templates, with names that only data() gives
    a meaning, or with calls of such a piece. Connects them to the data and to each other.

    A name that data() returns means that; another variable of data() only where the script has no such name.
    Raises UsageError for templates that the model never comes to.
    """
    reached, todo = {pieces[0].key}, [pieces[0]]
    while todo:
        todo += [one for one in todo.pop().calls.values() if one.key not in reached]
        reached |= {one.key for one in todo}
    for piece in pieces:
        if piece.templates and piece.key not in reached:
            raise wrong(
                piece.source.path,
                piece.templates[0].node,
                f"{piece.source.name} holds a template, but {pieces[0].source.name} does not call it by this name",
            )
    for piece in pieces if data.variables else ():
        for name in piece.uses - piece.calls.keys() if piece.sees_data else ():
            if name in data.returned or (name in data.variables and not _is_known(piece.source, name)):
                piece.wires[name] = (DATA, name)
    found = [piece for piece in pieces if piece.templates or piece.wires or piece is pieces[0]]
    while more := [
        piece for piece in pieces if piece not in found and any(one in found for one in piece.calls.values())
    ]:
        found += more
    for piece in found:
        piece.wires |= {name: (FUNCTION, one.key) for name, one in piece.calls.items() if one in found}
    return found


def link(piece: Piece, names: Mapping[Template, str]) -> tuple[Definition, Linked]:
    """Return the rewritten definition, as a tree and compiled."""
    node = piece.source.node
    mine = {template: names[template] for template in piece.templates}
    point, chosen = free_name(POINT_NAME, node), free_name(CHOSEN_NAME, node)
    rewritten: Definition = rewrite(node, mine, point=point, chosen=chosen)
    wires = {**piece.wires, point: (POINT, ""), chosen: (CHOSEN, "")} if mine else piece.wires
    maker = compiled(piece.source, rewritten, wires)
    return rewritten, Linked(maker=maker, wires=tuple(sorted(wires.items())))


def resolver(source: Source) -> Resolve:
    """Which (dotted) names of the script are distributions, imported under whatever name."""

    def resolve(name: str) -> str | None:
        from hyperopt import hp

        from hyperfarm import distributions

        head, *rest = name.split(".")
        value = _value(source, head)
        for part in rest:
            value = getattr(value, part, None)
        for known in DISTRIBUTIONS:
            if value is getattr(distributions, known) or value is getattr(hp, known):
                return known
        return None

    return resolve


def _piece(source: Source, taken: set[str], *, sees_data: bool) -> Piece:
    templates = find_templates(source.node, source.path, resolver(source))
    key, number = source.name, 1
    while key in taken:
        number += 1
        key = f"{source.name} ({number})"
    return Piece(
        key=key, source=source, templates=templates, uses=_uses(source, templates), sees_data=sees_data
    )


def _uses(source: Source, templates: Sequence[Template]) -> set[str]:
    """The names that the definition reads from outside of itself, once its templates are rewritten."""
    names = {template: str(number) for number, template in enumerate(templates)}
    node = rewrite(source.node, names, point=_INTERNAL, chosen=_INTERNAL)
    code = compiled(source, node, ()).__code__
    return (used_globals(code) | set(code.co_freevars)) - {_INTERNAL, source.name}


def _bare(thing: Any) -> Any:
    return inspect.unwrap(thing) if isinstance(thing, Callable) else thing  # type: ignore[arg-type]


def _value(source: Source, name: str) -> Any:
    """What a name means where the definition stands; None for nothing."""
    try:
        return source.value_of(name)
    except KeyError:
        return None


def _is_known(source: Source, name: str) -> bool:
    return name in source.namespace or name in source.cells or hasattr(builtins, name)

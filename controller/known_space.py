"""A search space as plain data: what the database holds of it, and what a person may write for a point of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hyperfarm.controller.compiling import compile_space
from hyperfarm.controller.space import Column, OutsideSpace, Space
from hyperfarm.mongo import Document
from hyperfarm.values import to_plain

Option = str | int | float | bool | None
"""An option of a choice, if it is a plain literal; None for any other."""


@dataclass(frozen=True, kw_only=True)
class KnownSpace:
    """The columns of a space and, by the label of each choice, its options."""

    space: Space
    options: Mapping[str, Sequence[Option]]

    def document(self) -> list[Document]:
        """What an experiment keeps: everything but code, so that it can be read without running any."""
        return [
            {
                **{field.name: to_plain(getattr(column, field.name)) for field in fields(Column)},
                "options": list(self.options.get(column.label, ())),
            }
            for column in self.space.columns
        ]

    def checked(self, point: Mapping[str, Any]) -> dict[str, int | float]:
        """The point as a trial's document holds it: label to number, of a choice the index of the option.

        Instead of the index an option's own text or number may be given where it can be meant by nothing else.
        Raises OutsideSpace, which names the parameter.
        """
        return self.space.point(
            self.space.row({label: self._index(label, value) for label, value in point.items()})
        )

    def shown(self, label: str, value: float) -> str:
        """A value for people: of a choice, the option itself beside its index, if it is plain."""
        options = self.options.get(label, ())
        option = options[int(value)] if options else None
        return f"{label}={value}" if option is None else f"{label}={value} ({option!r})"

    def _index(self, label: str, value: Any) -> Any:
        options = self.options.get(label, ())
        if _is_number(value) and any(_is_number(one) and one in range(len(options)) for one in options):
            return value
        if _is_number(value) and value in range(len(options)):
            return value
        same = [number for number, one in enumerate(options) if one is not None and _is_same(one, value)]
        if not same and isinstance(value, str) and options:
            listed = ", ".join(repr(one) for one in options if one is not None) or "no plain values"
            raise OutsideSpace(f"{label} is {value!r:.80}; its options are {listed}")
        return same[0] if len(same) == 1 else value


def describe(space: Any) -> KnownSpace:
    """Read a hyperopt space. Raises what `compile_space` raises."""
    from hyperopt.pyll import as_apply, dfs

    graph = as_apply(space)
    options = {}
    for node in dfs(graph):
        if node.name == "switch":
            choice, *rest = node.inputs()
            options[choice.arg["label"].obj] = [_literal(one) for one in rest]
    return KnownSpace(space=compile_space(graph), options=options)


def read(document: Sequence[Document]) -> KnownSpace:
    """Undo `KnownSpace.document`."""
    columns = []
    for one in document:
        plain = {field.name: one[field.name] for field in fields(Column)}
        plain["probabilities"] = tuple(plain["probabilities"])
        plain["conditions"] = tuple(
            tuple((a, b) for a, b in conjunction) for conjunction in plain["conditions"]
        )
        columns.append(Column(**plain))
    options = {one["label"]: one["options"] for one in document if one["options"]}
    return KnownSpace(space=Space(columns=tuple(columns)), options=options)


def _literal(node: Any) -> Option:
    value: Any = getattr(node, "obj", None) if node.name == "literal" else None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None  # More than the database holds; as is text that is none.
    if isinstance(value, str) and not value.isascii() and value != value.encode(errors="ignore").decode():
        return None
    return value if isinstance(value, (str, bool, int, float)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_same(one: Option, value: Any) -> bool:
    """True and 1 are not the same, 1 and 1.0 are."""
    return one == value and isinstance(one, bool) == isinstance(value, bool)

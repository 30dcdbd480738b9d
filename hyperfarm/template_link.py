"""From a model function with templates to an objective and its search space."""

from __future__ import annotations

import ast
import inspect
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hyperfarm.errors import UsageError
from hyperfarm.template_data import DataSource
from hyperfarm.template_find import Definition, Template, wrong
from hyperfarm.template_names import assign_names
from hyperfarm.template_objective import DATA, TemplateObjective
from hyperfarm.template_pieces import gather, link, touched
from hyperfarm.template_rewrite import own_nodes
from hyperfarm.template_source import Source
from hyperfarm.template_space import make_space


@dataclass(frozen=True, kw_only=True)
class TemplateSearch:
    """A search with templates, ready to be run.

    `space` is hyperopt's, a dict by the parameters' names. `names` are these by their templates, in the order of
    the text, and `places` say where each stands. `functions` are the rewritten definitions beside `model`.
    `source` is the model's, `data` the one of data().
    """

    objective: TemplateObjective
    space: dict[str, Any]
    names: dict[Template, str]
    places: dict[Template, str]
    model: Definition
    functions: list[Definition]
    source: Source
    data: DataSource


def prepare(
    model: Callable[..., Any],
    data: Callable[[], Any],
    functions: Sequence[Any] | None = None,
    notebook: str | None = None,
) -> TemplateSearch:
    """Rewrite the model function, and those that it calls where they need it; make the space.

    Nothing of the user's is run but the arguments of the distributions. Raises UsageError, with file and line,
    for what is wrong in the functions.
    """
    if not callable(model):
        raise UsageError(f"model must be a function, not a {type(model).__name__}")
    pieces = gather(model, list(functions or ()), notebook)
    source = pieces[0].source
    _check_model(source)
    names = assign_names([piece.templates for piece in pieces])
    if not names:
        raise wrong(
            source.path,
            source.node,
            f"{source.name} holds no template, so there is nothing to search for; write one, as in "
            "Dropout({{uniform(0, 1)}})",
        )
    loader = DataSource.of(data, notebook)
    found = touched(pieces, loader)
    linked = {piece.key: link(piece, names) for piece in found}
    space: dict[str, Any] = {}
    for piece in pieces:
        space |= make_space(piece.source, piece.templates, names)
    wanted = {key for piece in found for kind, key in piece.wires.values() if kind == DATA}
    objective = TemplateObjective(
        model=pieces[0].key,
        place=source.place,
        functions={key: one for key, (_, one) in linked.items()},
        data=loader.plan(_needed(model), wanted),
        texts={piece.source.path: piece.source.text for piece in found} | loader.texts,
        identity=uuid.uuid4().hex,
    )
    return TemplateSearch(
        objective=objective,
        space=space,
        names=names,
        places={
            one: f"{piece.source.path}, line {one.node.lineno}" for piece in pieces for one in piece.templates
        },
        model=linked[pieces[0].key][0],
        functions=[node for key, (node, _) in linked.items() if key != pieces[0].key],
        source=source,
        data=loader,
    )


def _check_model(source: Source) -> None:
    if not isinstance(source.node, ast.FunctionDef):
        raise wrong(source.path, source.node, f"{source.name} is a class; the model is a function")
    nodes = list(own_nodes(source.node))
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in nodes):
        raise wrong(source.path, source.node, f"{source.name} is a generator; it must return its result")
    if not any(isinstance(node, ast.Return) and node.value is not None for node in nodes):
        raise wrong(
            source.path,
            source.node,
            f"{source.name} returns nothing; it must return a number, or a dict as in "
            "return {'loss': -accuracy, 'status': STATUS_OK, 'model': model}",
        )


def _needed(model: Callable[..., Any]) -> list[str]:
    """The names of the arguments that the model cannot do without."""
    asked = inspect.signature(model).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in asked if one.default is one.empty and one.kind not in variable]

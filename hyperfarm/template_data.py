"""data(): what it returns by which names, and which of its variables the model sees."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hyperfarm.errors import UsageError
from hyperfarm.template_compile import compiled
from hyperfarm.template_find import Definition, find_templates, wrong
from hyperfarm.template_objective import KEEP, Data, Linked
from hyperfarm.template_rewrite import free_name, own_nodes
from hyperfarm.template_source import Source, find_source


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """What is known of data() without running it.

    `returned`: the names in its return, () if it returns anything else. `variables`: its local variables.
    `source` is None for a callable without one; then nothing is known.
    """

    function: Callable[[], Any]
    source: Source | None
    returned: tuple[str, ...]
    variables: frozenset[str]

    @staticmethod
    def of(function: Any, notebook: str | None) -> DataSource:
        """Read the source of data(). Raises UsageError for what is not callable, or holds a template."""
        if not callable(function):
            raise UsageError(
                f"data must be a function that returns the data, not a {type(function).__name__}"
            )
        try:
            source = find_source(function, notebook)
        except UsageError:  # A lambda, a partial, a method of a library: it is called as it is.
            return DataSource(function=function, source=None, returned=(), variables=frozenset())
        if not isinstance(source.node, ast.FunctionDef):
            return DataSource(function=function, source=None, returned=(), variables=frozenset())
        templates = find_templates(source.node, source.path)
        if templates:
            raise wrong(
                source.path,
                templates[0].node,
                f"{source.name} holds a template; templates belong into the model function and what it calls, as the "
                "data are loaded once for many trials",
            )
        code = inspect.unwrap(function).__code__
        return DataSource(
            function=function,
            source=source,
            returned=_returned_names(source.node),
            variables=frozenset({*code.co_varnames, *code.co_cellvars}),
        )

    @property
    def texts(self) -> dict[str, str]:
        """The file that it stands in, by name."""
        return {} if self.source is None else {self.source.path: self.source.text}

    def plan(self, needed: Sequence[str], wanted: Collection[str]) -> Data:
        """How it is called: `needed` are the model's parameters, `wanted` other names that functions use."""
        returned = set(self.returned)
        hidden = {name for name in needed if name not in returned and name in self.variables}
        # By name only if all can be had by name: else the parameters are bound by position.
        if set(needed) - returned - self.variables:
            hidden = set()
        kept = sorted((hidden | set(wanted)) - returned)
        linked = self._linked() if kept else None
        return Data(
            function=self.function if linked is None else None,
            linked=linked,
            returned=self.returned or None,
            kept=tuple(kept),
        )

    def _linked(self) -> Linked:
        """The function rewritten to return its variables too."""
        assert self.source is not None
        assert isinstance(self.source.node, ast.FunctionDef)
        keep, variables = free_name("with_variables", self.source.node), "locals"
        node = _Returns(keep, variables).rewritten(self.source.node)
        return Linked(maker=compiled(self.source, node, [keep]), wires=((keep, (KEEP, "")),))


def _returned_names(node: ast.FunctionDef) -> tuple[str, ...]:
    """The names of a `return a, b` or `return a`; () if the function returns anything else anywhere."""
    found: set[tuple[str, ...]] = set()
    for one in own_nodes(node):
        if isinstance(one, ast.Return):
            value = one.value
            parts = value.elts if isinstance(value, ast.Tuple) else [value]
            names = tuple(part.id for part in parts if isinstance(part, ast.Name))
            found.add(names if len(names) == len(parts) else ())
    names = found.pop() if len(found) == 1 else ()
    return names if len(set(names)) == len(names) else ()


class _Returns:
    """Copies a function so that each return gives (what it returned, its local variables)."""

    def __init__(self, keep: str, variables: str) -> None:
        self._keep, self._variables = keep, variables

    def rewritten(self, node: ast.FunctionDef) -> Definition:
        made: ast.FunctionDef = self._copy(node, is_top=True)
        end = ast.copy_location(ast.Return(value=None), node)
        made.body.append(self._returning(end))
        return made

    def _copy(self, node: Any, *, is_top: bool = False) -> Any:
        if isinstance(node, list):
            return [self._copy(one) for one in node]
        if not isinstance(node, ast.AST):
            return node
        if isinstance(node, ast.Return):
            return self._returning(node)
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
            and not is_top
        ):
            return node
        fields = {name: self._copy(value) for name, value in ast.iter_fields(node)}
        return ast.copy_location(type(node)(**fields), node)

    def _returning(self, node: ast.Return) -> ast.Return:
        value = node.value if node.value is not None else ast.Constant(value=None)
        variables = ast.Call(func=ast.Name(id=self._variables, ctx=ast.Load()), args=[], keywords=[])
        both = ast.Call(func=ast.Name(id=self._keep, ctx=ast.Load()), args=[value, variables], keywords=[])
        return ast.fix_missing_locations(ast.copy_location(ast.Return(value=both), node))

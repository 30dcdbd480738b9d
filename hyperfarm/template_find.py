"""Finds templates on the syntax tree: what stands in double braces.

`{{uniform(0, 1)}}` is valid Python, a set in a set. Pure: no file is read, nothing is imported or evaluated.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from dataclasses import dataclass

from hyperfarm.errors import UsageError
from hyperfarm.template_names import named_after

DISTRIBUTIONS = (
    "choice", "pchoice", "randint", "uniform", "uniformint", "quniform", "loguniform", "qloguniform",
    "normal", "qnormal", "lognormal", "qlognormal",
)  # fmt: skip
"""hyperopt's, by the names that a template calls them by."""
CHOICES = ("choice", "pchoice")

Definition = ast.FunctionDef | ast.ClassDef
Resolve = Callable[[str], str | None]
"""From a (dotted) name in the script to the distribution that it stands for there, None if it is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """One option of a choice, as it is written, and the templates in it (not those that stand in these).

    `probability`: that of an option of pchoice, else None.
    """

    node: ast.expr
    probability: ast.expr | None
    inner: tuple[Template, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Template:
    """One template. `node` is what is replaced, `call` the distribution with its arguments.

    `raw_name` is what it is named after (None: nothing), `label` a name that the script gives it itself.
    `options` of a choice that is written as a list; None for all others. `is_inner`: it stands in an option.
    """

    node: ast.expr
    call: ast.Call
    distribution: str
    raw_name: str | None
    label: str | None
    options: tuple[Choice, ...] | None
    is_inner: bool

    @property
    def text(self) -> str:
        """The distribution and its arguments, as Python writes them."""
        return ast.unparse(self.call)


def find_templates(definition: Definition, path: str, resolve: Resolve = lambda _: None) -> list[Template]:
    """Return the templates of a function or class in the order of the text, those inside others included.

    The bare names in DISTRIBUTIONS are known in any case: nobody needs to import them. Raises UsageError, with
    `path` and line, for double braces that hold anything else.
    """
    finder = _Finder(path, resolve)
    finder.visit(definition)
    return sorted(finder.found, key=lambda one: (one.node.lineno, one.node.col_offset))


def wrong(path: str, node: ast.AST, sentence: str) -> UsageError:
    """An error that begins with the place in the user's file."""
    return UsageError(f"{path}, line {getattr(node, 'lineno', '?')}: {sentence}")


def options_argument(call: ast.Call) -> ast.expr | None:
    """The argument of a choice that holds its options; None if it is missing."""
    if call.args:
        return call.args[0]
    return next((one.value for one in call.keywords if one.arg in {"options", "p_options"}), None)


@dataclass(frozen=True, kw_only=True)
class _Around:
    """What the finder is in: an option of a choice, or any other argument of a distribution."""

    distribution: str
    is_option: bool


class _Finder(ast.NodeVisitor):
    """Walks a definition with the way from its top at hand, as names come from what is around."""

    def __init__(self, path: str, resolve: Resolve) -> None:
        self.found: list[Template] = []
        self._path, self._resolve = path, resolve
        self._way: list[ast.AST] = []
        self._around: list[_Around] = []

    def visit(self, node: ast.AST) -> None:
        self._way.append(node)
        if isinstance(node, ast.Set) and any(map(_begins_with_brace, node.elts)):
            self._take(node, self._content(node))
        elif self._around and isinstance(node, ast.Call) and self._is_labelled(node):
            self._take(node, node)
        else:
            self.generic_visit(node)
        self._way.pop()

    def _content(self, node: ast.Set) -> ast.Call:
        """The call between the braces."""
        inner = node.elts[0]
        shown = ast.unparse(node)
        if len(node.elts) == 1 and isinstance(inner, ast.Set) and len(inner.elts) == 1:
            call = inner.elts[0]
            if isinstance(call, ast.Call) and (name := _dotted(call.func)):
                distribution = self._distribution(name)
                if distribution is not None:
                    self._refuse_label(call, distribution)
                    return call
                near = difflib.get_close_matches(name.rpartition(".")[2], DISTRIBUTIONS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(DISTRIBUTIONS)}"
                raise wrong(self._path, node, f"{name} in {shown} is not a distribution; {hint}")
        raise wrong(
            self._path,
            node,
            f"{shown} is no template: double braces hold one distribution with its arguments, as in "
            "{{uniform(0, 1)}}",
        )

    def _distribution(self, name: str) -> str | None:
        return name if name in DISTRIBUTIONS else self._resolve(name)

    def _refuse_label(self, call: ast.Call, distribution: str) -> None:
        if _label(call) is not None and (distribution != "choice" or len(call.args) > 1):
            raise wrong(
                self._path,
                call,
                f"{ast.unparse(call)} has a label; a template has none, it is named after what it is given to",
            )

    def _is_labelled(self, call: ast.Call) -> bool:
        """True for a call, inside a template, of what the script knows as a distribution, with a label."""
        name = _dotted(call.func)
        if name is None or self._resolve(name) is None:
            return False
        if _label(call) is None:
            raise wrong(
                self._path,
                call,
                f"{ast.unparse(call)} stands inside a template and needs double braces of its own",
            )
        return True

    def _take(self, node: ast.expr, call: ast.Call) -> None:
        is_inner = bool(self._around)
        if is_inner and not self._around[-1].is_option:
            raise wrong(
                self._path,
                node,
                f"{ast.unparse(call)} stands in the arguments of {self._around[-1].distribution}; inside a template "
                "another one can only stand in an option of a choice that is written as a list",
            )
        distribution = self._distribution(_dotted(call.func) or "")
        assert distribution is not None
        if distribution in CHOICES and options_argument(call) is None:
            raise wrong(self._path, node, f"{ast.unparse(call)} has no options to choose from")
        label = _label(call) if node is call else None
        if label is not None:
            plain = ast.Call(func=call.func, args=call.args[1:], keywords=call.keywords)
            call = ast.copy_location(plain, call)
        raw_name = named_after(self._way)
        options = self._options(distribution, call)
        self.found.append(
            Template(
                node=node,
                call=call,
                distribution=distribution,
                raw_name=raw_name,
                label=label,
                options=options,
                is_inner=is_inner,
            )
        )

    def _options(self, distribution: str, call: ast.Call) -> tuple[Choice, ...] | None:
        """Look into the arguments; return the options if they are written one by one."""
        parts = _written_options(distribution, call) if distribution in CHOICES else None
        if parts is None:
            for argument in [*call.args, *call.keywords]:
                self._inside(distribution, argument, is_option=False)
            return None
        options = []
        for probability, option in parts:
            if probability is not None:
                self._inside(distribution, probability, is_option=False)
            before = len(self.found)
            self._inside(distribution, option, is_option=True)
            here = self.found[before:]
            deeper = {one for other in here for choice in other.options or () for one in choice.inner}
            inner = tuple(one for one in here if one not in deeper)
            options.append(Choice(node=option, probability=probability, inner=inner))
        return tuple(options)

    def _inside(self, distribution: str, node: ast.AST, *, is_option: bool) -> None:
        self._around.append(_Around(distribution=distribution, is_option=is_option))
        self.visit(node)
        self._around.pop()


def _written_options(distribution: str, call: ast.Call) -> list[tuple[ast.expr | None, ast.expr]] | None:
    """(probability, option) of each option; None if they are not written one by one."""
    given = options_argument(call)
    if not isinstance(given, ast.List | ast.Tuple) or any(isinstance(e, ast.Starred) for e in given.elts):
        return None
    if distribution == "choice":
        return [(None, option) for option in given.elts]
    pairs = [pair.elts for pair in given.elts if isinstance(pair, ast.Tuple | ast.List)]
    if len(pairs) < len(given.elts) or any(len(pair) != 2 for pair in pairs):
        return None
    return [(pair[0], pair[1]) for pair in pairs]


def _begins_with_brace(node: ast.expr) -> bool:
    """True for what cannot be in a set when the code runs, so that it must be meant as a template."""
    return isinstance(node, ast.Set | ast.Dict | ast.SetComp | ast.DictComp)


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := _dotted(node.value)):
        return f"{head}.{node.attr}"
    return None


def _label(call: ast.Call) -> str | None:
    first = call.args[0] if call.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None

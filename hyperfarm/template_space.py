"""The search space of templates, made where the search is begun, and its points."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from hyperfarm.errors import UsageError
from hyperfarm.template_compile import compiled, evaluate
from hyperfarm.template_find import CHOICES, Choice, Template, options_argument, wrong
from hyperfarm.template_objective import INNER, Option, chosen, flat_point
from hyperfarm.template_rewrite import CHOSEN_NAME, POINT_NAME, free_name, rewrite, thunk
from hyperfarm.template_source import Source

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.ndarray, type(Ellipsis))
_CALM_CALLS = frozenset(
    {"int", "float", "str", "bool", "len", "range", "tuple", "list", "dict", "round", "min", "max", "abs", "sum",
     "sorted", "pow"}
)  # fmt: skip
"""Calls in an option that may be made where the search is begun: they build no layer."""
SEED = 0


def make_space(
    source: Source, templates: Iterable[Template], names: Mapping[Template, str]
) -> dict[str, Any]:
    """Return hyperopt's space: a dict of distributions by name, without those that stand in an option.

    Arguments are evaluated in the module that the template stands in; neither data() nor the model has run.
    Plain options of a choice are its options; any other one is an Option, made only where a trial needs it.
    Raises UsageError with file and line for what hyperopt cannot use.
    """
    maker = _Maker(source, names)
    return {names[one]: maker.distribution(one) for one in templates if not one.is_inner}


class ReturnedSpace(dict[str, Any]):
    """A space that is returned to the user: hyperopt's `space_eval` makes the options, layers too.

    `search` is the space that trials are drawn from, where an option that is no plain value is an Option.
    """

    def __init__(self, search: Mapping[str, Any]) -> None:
        done: dict[int, Any] = {}
        super().__init__({name: _making(node, done) for name, node in search.items()})
        self.search = dict(search)


def _making(node: Any, done: dict[int, Any]) -> Any:
    """A copy of a graph that makes an option in the place of each Option."""
    from hyperopt.pyll import Literal, scope

    if id(node) not in done:
        named = dict(node.named_args)
        inner = {name: _making(one, done) for name, one in named.items() if name != INNER}
        option = named.get(INNER, node)
        if isinstance(option, Literal) and isinstance(option.obj, Option):
            made = scope.call(Literal(_Making(option.obj)), (inner,))
        elif isinstance(node, Literal):
            made = node
        else:
            made = node.clone_from_inputs([_making(one, done) for one in node.inputs()])
        done[id(node)] = made
    return done[id(node)]


class _Making:
    """A function that makes an option of the values of the templates in it."""

    def __init__(self, option: Option) -> None:
        self._option = option

    def __repr__(self) -> str:
        return self._option.text

    def __call__(self, point: Mapping[str, Any]) -> Any:
        return _built(self._option, point)


def evaluated(space: Any, vals: Mapping[str, Any]) -> Any:
    """The values behind a trial's `vals` (numbers, or lists of one as hyperopt stores them), by name.

    A choice gives its option instead of a number. Options that are no plain values are made anew; one that needs
    what only a trial has, as data() or a local variable, stays an Option, which shows its text.
    """
    from hyperopt import space_eval

    point = space_eval(getattr(space, "search", space), unpacked(vals))
    if not isinstance(space, dict):
        return point
    flat = flat_point(point)
    return {name: _built(value, flat) for name, value in flat.items()}


def unpacked(vals: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial without hyperopt's lists around them; those that took no part are left out."""
    listed = {name: value for name, value in vals.items() if not (isinstance(value, list) and not value)}
    return {name: value[0] if isinstance(value, list) else value for name, value in listed.items()}


def _built(value: Any, point: Mapping[str, Any]) -> Any:
    if not isinstance(value, Option) or value.build is None:
        return value
    try:
        return value.build(point)
    except Exception:  # noqa: BLE001 - it may need anything that only a trial has
        return value


def is_plain(value: Any) -> bool:
    """True for numbers, text, None and arrays, and for containers of those."""
    if isinstance(value, Mapping):
        return all(is_plain(key) and is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple | set | frozenset | range):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN)


class _Maker:
    """Makes the distributions of one function's templates."""

    def __init__(self, source: Source, names: Mapping[Template, str]) -> None:
        self._source, self._names = source, names

    def distribution(self, template: Template) -> Any:
        from hyperopt import hp

        name, call = self._names[template], template.call
        make = getattr(hp, template.distribution)
        try:
            if template.distribution in CHOICES:
                made = make(name, self._options(template))
            else:
                args = [self._value(argument) for argument in call.args]
                made = make(name, *args, **{str(one.arg): self._value(one.value) for one in call.keywords})
            _try(made)
        except UsageError:
            raise
        except Exception as error:
            told = str(error).replace(template.distribution + "() ", "")
            raise wrong(
                self._source.path,
                template.node,
                f"{template.text} is not usable: {told or type(error).__name__}",
            ) from error
        return made

    def _options(self, template: Template) -> list[Any]:
        options = self._written(template) if template.options is not None else self._computed(template)
        if not options:
            raise wrong(self._source.path, template.node, f"{template.text} has no options to choose from")
        return options

    def _written(self, template: Template) -> list[Any]:
        """The options of a choice that is written as a list."""
        made = []
        for index, choice in enumerate(template.options or ()):
            value = self._option(index, choice)
            made.append(value if choice.probability is None else (self._value(choice.probability), value))
        return made

    def _option(self, index: int, choice: Choice) -> Any:
        from hyperopt.pyll import Apply, Literal

        if not choice.inner and self._is_calm(choice.node):
            with contextlib.suppress(
                Exception
            ):  # Whatever a trial has that is not here: it is evaluated there.
                value = self._value(choice.node)
                if is_plain(value):
                    return Literal(value)
                if isinstance(value, Apply):
                    return value
        option = Literal(Option(index, ast.unparse(choice.node), self._builder(choice.node)))
        if not choice.inner:
            return option
        return {INNER: option, **{self._names[one]: self.distribution(one) for one in choice.inner}}

    def _computed(self, template: Template) -> list[Any]:
        """The options of any other choice: the expression is evaluated here to know how many there are."""
        from hyperopt.pyll import Apply, Literal

        whole = options_argument(template.call)
        assert whole is not None
        text, build = ast.unparse(whole), self._builder(whole)
        made = []
        for index, item in enumerate(self._value(whole)):
            weight, value = item if template.distribution == "pchoice" else (None, item)
            if is_plain(value):
                value = Literal(value)
            elif not isinstance(value, Apply):
                value = Literal(
                    Option(index, f"({text})[{index}]", _item_of(build, index, weight is not None))
                )
            made.append(value if weight is None else (weight, value))
        return made

    def _value(self, node: ast.expr) -> Any:
        """Evaluate an expression where the function stands."""
        try:
            return evaluate(self._source, node)
        except NameError as error:
            raise wrong(
                self._source.path,
                node,
                f"{ast.unparse(node)} uses {error.name}, which the script does not define: the search space is made "
                "before data() and the model function run",
            ) from error

    def _is_calm(self, node: ast.expr) -> bool:
        """True if evaluating it here builds nothing, and means what it means in a trial."""
        names = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
        own = {one.id for one in names if isinstance(one.ctx, ast.Store)}  # Those of a comprehension.
        if ({one.id for one in names} - own) & self._source.variables:
            return False
        calls = [one.func for one in ast.walk(node) if isinstance(one, ast.Call)]
        return all(
            isinstance(one, ast.Name) and one.id in _CALM_CALLS and one.id not in self._source.namespace
            for one in calls
        )

    def _builder(self, node: ast.expr) -> Callable[[Mapping[str, Any]], Any]:
        """A function that makes the value of an option from a point, for `evaluated`."""
        arguments = [free_name(POINT_NAME, node), free_name(CHOSEN_NAME, node)]
        body = rewrite(node, self._names, point=arguments[0], chosen=arguments[1])
        build = compiled(self._source, thunk(body, arguments), ())
        return lambda point: build()(point, chosen)


def _item_of(
    build: Callable[[Mapping[str, Any]], Any], index: int, is_pair: bool
) -> Callable[[Mapping[str, Any]], Any]:
    def item(point: Mapping[str, Any]) -> Any:
        made = list(build(point))[index]
        return made[1] if is_pair else made

    return item


def _try(node: Any) -> None:
    """Draw once: hyperopt finds out about wrong arguments only then. Raises what it raises."""
    from hyperopt.pyll import as_apply, clone, rec_eval
    from hyperopt.pyll.stochastic import recursive_set_rng_kwarg

    drawn = recursive_set_rng_kwarg(clone(as_apply(node)), as_apply(np.random.default_rng(SEED)))
    rec_eval(drawn, print_node_on_error=False)

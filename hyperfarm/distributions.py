"""The names that templates use, to be imported as from hyperas.distributions.

    from hyperfarm.distributions import choice, uniform

A template needs no import, but editors and linters do. Called with a label they are hyperopt's `hp` functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hyperfarm.errors import UsageError

__all__ = [
    "choice",
    "conditional",
    "lognormal",
    "loguniform",
    "normal",
    "pchoice",
    "qlognormal",
    "qloguniform",
    "qnormal",
    "quniform",
    "randint",
    "uniform",
    "uniformint",
]  # fmt: skip

Value = TypeVar("Value")


class NotInTemplate(UsageError, TypeError):
    """A distribution was called outside of double braces (and so by TypeError, as hyperopt has it)."""


def conditional(value: Value) -> Value:
    """Return the value: `if conditional({{choice(['three', 'four'])}}) == 'four'` is an old way to name it."""
    return value


def _distribution(name: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        from hyperopt import hp

        label = options.get("label", args[0] if args else None)
        if not isinstance(label, str):
            shown = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in options.items())])
            raise NotInTemplate(
                f"{name}({shown}) was called outside of a template: write {{{{{name}({shown})}}}} in the model "
                "function, and give that to minimize instead of calling it"
            )
        return getattr(hp, name)(*args, **options)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"hyperopt's `hp.{name}`, without its label, between double braces."
    return call


choice = _distribution("choice")
pchoice = _distribution("pchoice")
randint = _distribution("randint")
uniform = _distribution("uniform")
uniformint = _distribution("uniformint")
quniform = _distribution("quniform")
loguniform = _distribution("loguniform")
qloguniform = _distribution("qloguniform")
normal = _distribution("normal")
qnormal = _distribution("qnormal")
lognormal = _distribution("lognormal")
qlognormal = _distribution("qlognormal")

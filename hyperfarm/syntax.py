"""Python's text as a syntax tree, from any number of threads."""

from __future__ import annotations

import ast
import threading

_one_at_a_time = threading.RLock()


def parse(text: str | bytes) -> ast.Module:
    """`ast.parse`; raises the same (SyntaxError, ValueError).

    Python 3.11 counts its own depth for all threads together, so that two at once can end with a SystemError
    (https://github.com/python/cpython/issues/106905).
    """
    with _one_at_a_time:
        return ast.parse(text)

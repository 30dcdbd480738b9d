"""The rewritten module as text, for people to read."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from hyperfarm.syntax import parse
from hyperfarm.template_rewrite import as_hyperopt

if TYPE_CHECKING:
    from hyperfarm.template_link import TemplateSearch

_HEAD = '''"""{name} without its templates, as trials run it. This file is for reading; nothing uses it.

The original: {place}. `space` holds the values of one trial.
"""'''
_OURS = ("hyperas", "hyperfarm")


def describe(search: TemplateSearch) -> str:
    """The parameters, one on a line: name, template, where it stands."""
    rows = [(name, template.text, search.places[template]) for template, name in search.names.items()]
    wide, text = (max(len(row[index]) for row in rows) for index in (0, 1))
    told = [f"    {name:<{wide}}  {template:<{text}}  {place}" for name, template, place in rows]
    return "\n".join([f">>> Search space of {search.source.name}:", *told])


def module_text(search: TemplateSearch) -> str:
    """A valid Python module: imports, data(), the rewritten functions and model, and the space as hyperopt has it."""
    tree = parse(search.source.text)
    imports = [
        node
        for node in tree.body
        if (isinstance(node, ast.Import) and not node.names[0].name.startswith(_OURS))
        or (isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(_OURS))
    ]
    ours = "from hyperopt import hp\n\nfrom hyperfarm.template_objective import chosen"
    data = search.data.source
    head = _HEAD.format(name=search.source.name, place=search.source.place)
    parts = [
        "\n\n".join([head, "\n".join(map(ast.unparse, imports))]) + f"\n{ours}",
        *([] if data is None else [ast.unparse(data.node)]),
        *(ast.unparse(node) for node in search.functions),
        ast.unparse(search.model),
        _space_text(search),
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _space_text(search: TemplateSearch) -> str:
    lines = [
        f"        {name!r}: {ast.unparse(as_hyperopt(template, search.names))},\n"
        for template, name in search.names.items()
        if not template.is_inner
    ]
    return "def get_space():\n    return {\n" + "".join(lines) + "    }"

"""What the stored text of a search space tells about its parameters: names of choices, and logarithmic scales.

The text is hyperopt's own print of the space: a line number, an indent, a node per line. A text that looks
otherwise tells nothing, and that is no error: parameters are then drawn by their stored numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LINE = re.compile(r"^\d+ ( *)(\S.*?)\s*$")
_LITERAL = re.compile(r"^Literal\{(.*)\}$")
_LOGARITHMIC = {"loguniform", "qloguniform", "lognormal", "qlognormal"}
_CHOOSING = {"randint", "categorical"}


@dataclass(kw_only=True)
class Space:
    """`labels` in the order of the space, `choices` the options of each hp.choice, `logarithmic` labels."""

    labels: list[str] = field(default_factory=list)
    choices: dict[str, list[str]] = field(default_factory=dict)
    logarithmic: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class _Node:
    name: str
    indent: int
    children: list[_Node] = field(default_factory=list)

    @property
    def literal(self) -> str | None:
        match = _LITERAL.match(self.name)
        return match.group(1) if match else None

    def walk(self) -> Iterator[_Node]:
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


def read_space(text: object) -> Space:
    """Return what the text of a space tells; an empty Space when it is no such text."""
    space = Space()
    if not isinstance(text, str):
        return space
    for node in _tree(text).walk():
        if node.name == "hyperopt_param":
            _take_parameter(space, node)
        elif node.name == "switch":
            _take_choice(space, node)
    return space


def _tree(text: str) -> _Node:
    """The nodes by their indents; lines that are no node (a literal with line breaks) are left out."""
    root = _Node(name="", indent=-1)
    path = [root]
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        node = _Node(name=match.group(2), indent=len(match.group(1)))
        while path[-1].indent >= node.indent:
            path.pop()
        path[-1].children.append(node)
        path.append(node)
    return root


def _take_parameter(space: Space, node: _Node) -> None:
    label, kind = _label_and_kind(node)
    if label is not None and label not in space.labels:
        space.labels.append(label)
        if kind in _LOGARITHMIC:
            space.logarithmic.add(label)


def _take_choice(space: Space, node: _Node) -> None:
    if not node.children or node.children[0].name != "hyperopt_param":
        return
    label, kind = _label_and_kind(node.children[0])
    if label is None or kind not in _CHOOSING:
        return
    options = []
    for number, option in enumerate(node.children[1:]):
        options.append(option.literal if option.literal is not None else f"option {number}")
    space.choices[label] = options


def _label_and_kind(node: _Node) -> tuple[str | None, str]:
    """The label and the distribution of a `hyperopt_param`."""
    if len(node.children) < 2:
        return None, ""
    return node.children[0].literal, node.children[1].name

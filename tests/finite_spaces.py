"""Random finite spaces with conditional parameters, and all their points by plain recursion."""

from __future__ import annotations

import math
from typing import Any

from hyperopt import hp
from hypothesis import strategies as st

Point = dict[str, float]
LEAVES: list[tuple[Any, list[float]]] = [
    (hp.quniform("q", -1, 1, 0.5), [-1, -0.5, 0, 0.5, 1]),
    (hp.qloguniform("l", 0, math.log(9), 4), [0, 4, 8]),
    (hp.randint("r", 3, 6), [3, 4, 5]),
    (hp.pchoice("p", [(0.5, "a"), (0.0, "never"), (0.5, "b")]), [0, 2]),
]
LABELS = ["q", "l", "r", "p"]


def together(parts: list[list[Point]]) -> list[Point]:
    """All ways to take one of each part, where they agree about what they share."""
    points: list[Point] = [{}]
    for part in parts:
        points = [
            {**one, **other}
            for one in points
            for other in part
            if all(one.get(label, value) == value for label, value in other.items())
        ]
    return points


@st.composite
def spaces(draw: st.DrawFn) -> tuple[list[Any], list[Point]]:
    """A space of parameters and choices, which may stand at several places, and all its points."""
    nodes = [(node, [{label: v} for v in vs]) for label, (node, vs) in zip(LABELS, LEAVES, strict=True)]
    for number in range(draw(st.integers(1, 3))):
        label = f"c{number}"
        some = st.lists(st.sampled_from(range(len(nodes))), unique=True, max_size=3)
        options = draw(st.lists(some, min_size=1, max_size=3))
        node = hp.choice(label, [[nodes[one][0] for one in option] for option in options])
        points = [
            point
            for chosen, option in enumerate(options)
            for point in together([[{label: chosen}], *(nodes[one][1] for one in option)])
        ]
        nodes.append((node, points))
    top = draw(st.lists(st.sampled_from(range(len(nodes))), unique=True, min_size=1, max_size=3))
    return [nodes[one][0] for one in top], together([nodes[one][1] for one in top])

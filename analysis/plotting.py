"""From an experiment's name to a picture in a file: what `hyperfarm plot` and `SearchResult.plot` do."""

from __future__ import annotations

from pathlib import Path

from hyperfarm.analysis.axes import Axes
from hyperfarm.analysis.files import check_writable, file_name
from hyperfarm.analysis.pictures import draw, require_matplotlib
from hyperfarm.analysis.reading import find_experiment
from hyperfarm.analysis.scene import Wishes, make_scene
from hyperfarm.store import Store


def plot_to_file(store: Store, exp_key: str, path: Path | None, wishes: Wishes) -> Path:
    """Draw the finished trials of the experiment; return the picture's absolute path.

    Without a path the file is named after the experiment and the kind of picture, in the working
    directory. Raises UsageError that says what is wrong: unknown axes, nothing to draw, no matplotlib.
    """
    require_matplotlib()
    path = path or Path(f"{file_name(exp_key)}-{wishes.kind}.png")
    check_writable(path)
    experiment = find_experiment(store, exp_key)
    axes = Axes(store, experiment, [wishes.x, wishes.y, wishes.z, wishes.color])
    draw(make_scene(axes, wishes), wishes.kind, path)
    return path.absolute()

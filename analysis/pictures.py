"""Drawing a scene with matplotlib: three dimensions, a scatter, a history.

matplotlib is imported when something is drawn, and pyplot never: a user's figures, backend and settings stay
as they are.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperfarm.analysis.axes import Axis
from hyperfarm.analysis.files import write_whole
from hyperfarm.analysis.scene import Scene
from hyperfarm.errors import UsageError

SIZE_INCHES = (10.0, 7.5)
DPI = 160
INK, FAINT, STAR = "#222222", "#8a8f98", "#e4572e"
COLOURS = "viridis"
DROP_LINES_UP_TO = 60
"""With more trials than this their drop lines would hide them; the shadows on the floor stay."""
MARGIN = 0.06


def require_matplotlib() -> None:
    """Raise UsageError, saying what to install, when matplotlib is not there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'hyperfarm[plot]'") from None


def draw(scene: Scene, kind: str, path: Path) -> None:
    """Draw the scene and write it to `path`, whole or not at all; the ending chooses the format.

    Raises UsageError for an ending that matplotlib does not know, or a path that cannot be written.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    painter: Callable[[Any, Scene], None] = {
        "3d": _draw_3d,
        "scatter": _draw_scatter,
        "history": _draw_history,
    }[kind]
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A glyph that the font lacks is no news for a terminal.
        matplotlib.rcParams.update({**_untouched_defaults(matplotlib), "font.size": 11})
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        kinds = canvas.get_supported_filetypes()
        ending = path.suffix.lower().lstrip(".") or "png"
        if ending not in kinds:
            raise UsageError(f"cannot draw a {path.suffix} file; the endings are {', '.join(sorted(kinds))}")
        painter(figure, scene)
        _write_titles(figure, scene)
        image = io.BytesIO()
        figure.savefig(image, format=ending)
    write_whole(path, image.getvalue())


def _untouched_defaults(matplotlib: Any) -> dict[str, Any]:
    """matplotlib's own settings, whatever the user's matplotlibrc says (TeX, dark styles); not the backend."""
    backend = ("backend", "backend_fallback", "interactive", "toolbar", "webagg")
    return {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith(backend)}


def _write_titles(figure: Any, scene: Scene) -> None:
    """Title and subtitle; a `$` in a name is a dollar sign, no formula."""
    title = scene.title if len(scene.title) <= 70 else scene.title[:69] + "…"
    figure.text(
        0.5, 0.955, title, ha="center", va="center", fontsize=17, weight="bold", color=INK, parse_math=False
    )
    figure.text(0.5, 0.918, scene.subtitle, ha="center", va="center", fontsize=11, color="#555555")


# ---- three dimensions ------------------------------------------------------------------------------------


def _draw_3d(figure: Any, scene: Scene) -> None:
    from mpl_toolkits.mplot3d import Axes3D
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    ax = figure.add_axes((-0.03, -0.03, 0.93, 0.96), projection=Axes3D.name)
    ax.computed_zorder = False
    ax.set_box_aspect((1.2, 1.2, 0.86), zoom=1.0)
    ax.view_init(elev=22, azim=-56)
    shown = {which: _transformed(scene, which) for which in "xyz"}
    for which in "xyz":
        _set_up_3d_axis(ax, which, scene.axes[which], shown[which])
    floor = ax.get_zlim()[0]
    xs, ys, zs = shown["x"], shown["y"], shown["z"]
    ax.scatter(xs, ys, [floor] * len(xs), s=12, c=FAINT, alpha=0.45, linewidths=0, depthshade=False, zorder=1)
    stems = range(len(xs)) if len(xs) <= DROP_LINES_UP_TO else [scene.best] if scene.best is not None else []
    lines = [((xs[i], ys[i], floor), (xs[i], ys[i], zs[i])) for i in stems]
    ax.add_collection3d(Line3DCollection(lines, colors=FAINT, linewidths=0.9, alpha=0.75, zorder=2))
    size = 75 if len(xs) <= DROP_LINES_UP_TO else 30
    points = ax.scatter(
        xs, ys, zs, c=scene.numbers("color"), norm=_norm(scene.axes["color"]), cmap=COLOURS, s=size,
        edgecolors=INK, linewidths=0.4, depthshade=False, zorder=3,
    )  # fmt: skip
    if scene.best is not None:
        i = scene.best
        ax.scatter([xs[i]], [ys[i]], [zs[i]], zorder=5, **_star(scene))
    _add_colorbar(figure, points, scene, (0.9, 0.25, 0.018, 0.48))
    _add_legend(figure, ax)


def _transformed(scene: Scene, which: str) -> list[float]:
    """The values as they are placed: matplotlib's 3D axes know no logarithmic scale, so we take the logarithm."""
    values = scene.numbers(which)
    return [math.log10(value) for value in values] if scene.axes[which].log else values


def _set_up_3d_axis(ax: Any, which: str, axis: Axis, values: list[float]) -> None:
    low, high = _limits(values)
    getattr(ax, f"set_{which}lim")(low, high)
    own = getattr(ax, f"{which}axis")
    ticks = _ticks(axis, low, high)
    if ticks is not None:
        own.set_ticks(list(ticks), list(ticks.values()))
    else:
        own.set_major_locator(_locator(axis))
    longest = max((4 if "$10" in text else len(text) for text in (ticks or {}).values()), default=0)
    style = {"fontsize": 13, "color": INK, "parse_math": False}
    getattr(ax, f"set_{which}label")(axis.label, labelpad=10 + 1.2 * min(longest, 12), **style)
    if which == "z":
        own.set_rotate_label(False)
        own.label.set_rotation(90)
    ax.tick_params(axis=which, labelsize=10, colors=INK, pad=3 if which != "z" else 5)
    own.set_pane_color((0.965, 0.97, 0.98, 1.0))
    own._axinfo["grid"].update(color="#d5d9e0", linewidth=0.7)


# ---- two dimensions --------------------------------------------------------------------------------------


def _draw_scatter(figure: Any, scene: Scene) -> None:
    ax = figure.add_axes((0.1, 0.09, 0.74, 0.76))
    points = ax.scatter(
        scene.numbers("x"), scene.numbers("y"), c=scene.numbers("color"), norm=_norm(scene.axes["color"]),
        cmap=COLOURS, s=60 if len(scene.tids) <= DROP_LINES_UP_TO else 28, edgecolors=INK, linewidths=0.4, zorder=3,
    )  # fmt: skip
    _set_up_flat(ax, scene)
    _put_star(ax, scene)
    _add_colorbar(figure, points, scene, (0.87, 0.09, 0.022, 0.76))
    _add_legend(figure, ax)


def _draw_history(figure: Any, scene: Scene) -> None:
    ax = figure.add_axes((0.1, 0.09, 0.86, 0.76))
    xs, ys = scene.numbers("x"), scene.numbers("y")
    ax.scatter(xs, ys, s=30, color="#4c72b0", alpha=0.75, linewidths=0, zorder=3, label="trial")
    if scene.axes["y"].name == "loss":
        ax.step(
            xs, _running_minimum(ys), where="post", color=STAR, linewidth=1.6, zorder=2, label="best so far"
        )
    _set_up_flat(ax, scene)
    if scene.failed_at:
        ax.plot(
            scene.failed_at, [0.012] * len(scene.failed_at), "x", color="#b00020", markersize=6, zorder=3,
            transform=ax.get_xaxis_transform(), label="failed", clip_on=False,
        )  # fmt: skip
    _put_star(ax, scene)
    _add_legend(figure, ax)


def _running_minimum(values: list[float]) -> list[float]:
    lowest, so_far = [], math.inf
    for value in values:
        so_far = min(so_far, value)
        lowest.append(so_far)
    return lowest


def _set_up_flat(ax: Any, scene: Scene) -> None:
    for which in "xy":
        axis, own = scene.axes[which], getattr(ax, f"{which}axis")
        if axis.log:
            getattr(ax, f"set_{which}scale")("log")
        elif axis.ticks:
            ticks = _ticks(axis, *_limits(scene.numbers(which))) or {}
            own.set_ticks(list(ticks), list(ticks.values()))
        else:
            own.set_major_locator(_locator(axis, 8))
        getattr(ax, f"set_{which}label")(axis.label, fontsize=13, color=INK, parse_math=False)
    ax.grid(color="#e3e6eb", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _put_star(ax: Any, scene: Scene) -> None:
    if scene.best is not None:
        ax.scatter(
            [scene.numbers("x")[scene.best]], [scene.numbers("y")[scene.best]], zorder=5, **_star(scene)
        )


# ---- what they share -------------------------------------------------------------------------------------


def _star(scene: Scene) -> dict[str, Any]:
    return {
        "marker": "*", "s": 420, "c": STAR, "edgecolors": INK, "linewidths": 0.9, "label": scene.best_label,
        **({"depthshade": False} if "z" in scene.axes else {}),
    }  # fmt: skip


def _add_legend(figure: Any, ax: Any) -> None:
    """One line under the titles, where nothing else is."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        place = {"loc": "center", "bbox_to_anchor": (0.5, 0.88), "ncols": len(handles)}
        figure.legend(handles, labels, frameon=False, fontsize=12, markerscale=0.75, **place)


def _add_colorbar(figure: Any, points: Any, scene: Scene, box: tuple[float, float, float, float]) -> None:
    axis = scene.axes["color"]
    bar = figure.colorbar(points, cax=figure.add_axes(box))
    if axis.ticks:
        ticks = _ticks(axis, *_limits(scene.numbers("color"))) or {}
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.set_label(axis.label, fontsize=13, color=INK, parse_math=False)
    bar.outline.set_linewidth(0.5)


def _norm(axis: Axis) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    values = [value for value in axis.values if value is not None]
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if axis.log else (low - 0.5, high + 0.5)
    return LogNorm(low, high) if axis.log else Normalize(low, high)


def _limits(values: list[float]) -> tuple[float, float]:
    """The ends of an axis: the values with a margin; a single value stands in the middle."""
    low, high = min(values), max(values)
    margin = (high - low) * MARGIN or abs(high) * 0.1 or 0.5
    return low - margin, high + margin


def _locator(axis: Axis, ticks: int = 6) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=ticks, integer=axis.whole, steps=[1, 2, 2.5, 5, 10])


def _ticks(axis: Axis, low: float, high: float) -> dict[float, str] | None:
    """Ticks of our own between `low` and `high` (as placed): the names of a choice, or powers of ten."""
    if axis.ticks:
        return {place: _short(name) for place, name in axis.ticks.items() if low <= place <= high}
    return log_ticks(low, high) if axis.log else None


def _short(name: str) -> str:
    text = name if len(name) <= 14 else name[:13] + "…"
    return text.replace("$", r"\$")


def log_ticks(low: float, high: float) -> dict[float, str]:
    """Ticks for an axis of logarithms: {log10 of a round number: its text}, at most about seven."""
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    if len(powers) >= 3:
        step = math.ceil(len(powers) / 6)
        return {float(power): f"$10^{{{power}}}$" for power in powers if power % step == 0}
    rounds = {
        math.log10(digit) + power: digit * 10.0**power
        for power in range(math.floor(low) - 1, math.ceil(high) + 1)
        for digit in (1, 2, 5)
    }
    inside = {place: f"{value:g}" for place, value in rounds.items() if low <= place <= high}
    if len(inside) >= 2:
        return inside
    return {low + (high - low) * part: f"{10 ** (low + (high - low) * part):.4g}" for part in (0.1, 0.5, 0.9)}

"""What is drawn and what is not: the trials of a picture, decided before any drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperfarm.analysis.axes import Axes, Axis
from hyperfarm.analysis.reading import best_row, count, duration_of, loss_of, outcome, succeeded
from hyperfarm.errors import UsageError

AXES_OF = {"3d": ("x", "y", "z", "color"), "scatter": ("x", "y", "color"), "history": ("y",)}
"""What can be chosen for each kind of picture."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asked for; None leaves it to us. `log` and `linear` hold x, y, z or color."""

    kind: str = "3d"
    x: str | None = None
    y: str | None = None
    z: str | None = None
    color: str | None = None
    title: str | None = None
    log: Sequence[str] = ()
    linear: Sequence[str] = ()

    def scale(self, which: str) -> bool | None:
        """True for logarithmic, False for linear, None for whatever suits the values."""
        return True if which in self.log else False if which in self.linear else None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Successful trials with a finite value on every axis, and the words around them.

    All axes have one value per trial, none of them None. `best` is the place of the best trial of the
    experiment among them, None when it is not drawn; `failed_at` are the tids of failed trials.
    """

    title: str
    subtitle: str
    axes: dict[str, Axis]
    tids: list[int]
    best: int | None
    best_label: str
    failed_at: list[int]

    def numbers(self, which: str) -> list[float]:
        """The values of one axis, without any None."""
        return [value for value in self.axes[which].values if value is not None]


def make_scene(source: Axes, wishes: Wishes) -> Scene:
    """Choose the axes and the trials. Raises UsageError when nothing can be drawn, saying why."""
    if not any(succeeded(row) and loss_of(row) is not None for row in source.rows):
        counts = ", ".join(f"{number} {what}" for what, number in count(source.rows).items()) or "none at all"
        raise UsageError(f"no trial of {source.experiment.name} has finished with a loss yet ({counts})")
    axes = _choose_axes(source, wishes)
    good = [place for place, row in enumerate(source.rows) if succeeded(row)]
    drawn = [place for place in good if all(axis.values[place] is not None for axis in axes.values())]
    if not drawn:
        names = ", ".join(axis.name for axis in axes.values())
        raise UsageError(f"no finished trial of {source.experiment.name} has all of: {names}")
    best = best_row(source.rows)
    tids = [source.rows[place]["tid"] for place in drawn]
    return Scene(
        title=wishes.title or source.experiment.name,
        subtitle=_subtitle(source, wishes.kind, len(good), len(drawn)),
        axes={which: _narrowed(axis, drawn) for which, axis in axes.items()},
        tids=tids,
        best=tids.index(best["tid"]) if best is not None and best["tid"] in tids else None,
        best_label=f"best: loss {loss_of(best):.4g} (trial {best['tid']})" if best is not None else "",
        failed_at=[row["tid"] for row in source.rows if outcome(row) == "failed"],
    )


def _narrowed(axis: Axis, places: Sequence[int]) -> Axis:
    return replace(axis, values=[axis.values[place] for place in places])


def _subtitle(source: Axes, kind: str, good: int, drawn: int) -> str:
    """How many trials there are, and what became of those that are not drawn."""
    parts = [f"{drawn} trial{'s' if drawn != 1 else ''}"]
    counts = count(source.rows)
    for what in ("failed", "pruned"):
        if counts.get(what):
            marked = kind == "history" and what == "failed"
            parts.append(f"{counts[what]} {what}" + ("" if marked else " (not drawn)"))
    if good > drawn:
        parts.append(f"{good - drawn} without a value on every axis (not drawn)")
    parts += [f"{counts[what]} {what}" for what in ("running", "waiting", "cancelled") if counts.get(what)]
    return " · ".join(parts)


def _choose_axes(source: Axes, wishes: Wishes) -> dict[str, Axis]:
    possible = AXES_OF[wishes.kind]
    for which in ("x", "y", "z", "color"):
        asked = getattr(wishes, which) is not None or wishes.scale(which) is not None
        if asked and which not in possible:
            raise UsageError(f"a picture of kind {wishes.kind} has no {which} to choose")
    names = _choose_names(source, wishes)
    axes = {which: source.make(name, log=wishes.scale(which)) for which, name in names.items()}
    if "color" in possible and "color" not in axes:  # No durations are known.
        axes["color"] = axes["z" if "z" in possible else "y"]
    return axes


def _choose_names(source: Axes, wishes: Wishes) -> dict[str, str]:
    """The names of all axes: as asked, else parameters, loss and duration."""
    if wishes.kind == "history":
        return {"x": "tid", "y": wishes.y or "loss"}
    asked = {wishes.x, wishes.y, wishes.z, wishes.color}
    free = [name for name in source.default_parameters() if name not in asked] + ["tid"]
    names = {"x": wishes.x or free.pop(0)}
    if wishes.kind == "3d":
        names["y"] = wishes.y or (free.pop(0) if free else "loss")
        names["z"] = wishes.z or "loss"
    else:
        names["y"] = wishes.y or "loss"
    if wishes.color or any(duration_of(row) is not None for row in source.rows if succeeded(row)):
        names["color"] = wishes.color or "duration"
    return names

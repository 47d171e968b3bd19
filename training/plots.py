"""Plots of fine-tuning runs as SVG that takes its ink from the page, so that it is read in light and in dark mode.

Colour is never the only sign: every run has its own marker too. Drawn with matplotlib's object interface, without a window.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.report import Run, published_of

_INK = "#010203"  # stands for the page's text colour until the SVG is finished
_COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#84cc16", "#f97316", "#64748b")
_MARKERS = "osD^vP*X<>"
_WIDTH = 5.2  # inches; at 72 points an inch a phone shows it about 1:1


@contextmanager
def _style() -> Iterator[None]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color", "grid.color")
    settings: dict[Any, Any] = {
        **dict.fromkeys(inked, _INK),
        "svg.fonttype": "none",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.2,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with mpl.rc_context(settings):
        yield


def _svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element that names itself; no prolog, no metadata, no date."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}):  # ids are unique in a page of several plots, and the same in every run
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'(width|height)="[^"]*pt" ', "", text, count=2)  # viewBox stays: the page decides how wide it is
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).replace(_INK, "currentColor").strip()


def _look(place: int) -> dict[str, Any]:
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[(place + place // len(_COLOURS)) % len(_MARKERS)]}


def _with_legend(figure: Figure, axes: Axes, label: str) -> str:
    """The plot with a legend below it, in two columns where they fit, and as much taller."""
    names = axes.get_legend_handles_labels()[1]
    columns = 1 if max(map(len, names), default=0) > 34 else 2
    if names:
        figure.legend(loc="outside lower left", ncols=columns)
    figure.set_size_inches(_WIDTH, 3.3 + 0.2 * -(-len(names) // columns))
    return _svg(figure, label)


def learning_curve(runs: Sequence[Run], key: str, title: str) -> str:
    """A metric of the validation part by epoch, the chosen epoch ringed."""
    curves = [(place, run) for place, run in enumerate(runs) if run.epochs]
    with _style():
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        for place, run in curves:
            epochs, values = [e["epoch"] for e in run.epochs], [e["validation"][key] for e in run.epochs]
            axes.plot(epochs, values, label=run.name, markersize=5, **_look(place))
            best = run.obtained["best_epoch"]
            if best is not None:
                axes.plot(best, values[epochs.index(best)], "o", markersize=11, fillstyle="none", color=_look(place)["color"])
        axes.set(xlabel="epoch (ring: the one kept)", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _with_legend(figure, axes, f"{title} by epoch")


def quality_by_parameters(runs: Sequence[Run]) -> str:
    """Accuracy against trainable parameters on a log axis; filled is obtained, hollow is published."""
    finished = [(place, run) for place, run in enumerate(runs) if run.record]
    with _style():
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        for place, run in finished:
            count, accuracy = run.obtained["trainable"], run.obtained["accuracy"]
            axes.plot(count, accuracy, label=f"{run.name}: {count:,}", linestyle="none", markersize=8, **_look(place))
            published = published_of(run, "trainable"), published_of(run, "accuracy")
            if None not in published:
                axes.plot(*published, fillstyle="none", linestyle="none", markersize=8, **_look(place))
        axes.set_xscale("symlog", linthresh=100)  # keeps 0, the strategy that trains nothing, on the axis
        axes.margins(x=0.06, y=0.12)
        axes.set(xlabel="trainable parameters (log)", ylabel="accuracy (hollow: published)")
        return _with_legend(figure, axes, "accuracy against trainable parameters")


def bars(runs: Sequence[Run], key: str, title: str, form: str, *, published: bool) -> str:
    """One figure of each run as horizontal bars with their values; with `published`, a hollow diamond at the source's."""
    known = [(place, run, run.obtained[key]) for place, run in enumerate(runs) if run.obtained[key] is not None]
    with _style():
        figure = Figure(figsize=(_WIDTH, 1.0 + 0.34 * max(2, len(known))), layout="constrained")
        axes = figure.subplots()
        for row, (place, run, value) in enumerate(known):
            axes.barh(row, value, height=0.6, color=_look(place)["color"], label=run.name)
            axes.annotate(form.format(value), (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
            source = published_of(run, key) if published else None
            if source is not None:
                axes.plot(source, row, "D", markersize=6, fillstyle="none", color=_INK)
        _finish_bars(axes, [run.name for _, run, _ in known], title)
        return _svg(figure, title)


def _finish_bars(axes: Axes, names: list[str], title: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.16)
    axes.set_xlabel(title)


def all_plots(runs: Sequence[Run]) -> dict[str, str]:
    """Every plot of a comparison by its heading."""
    return {
        "Validation loss by epoch": learning_curve(runs, "loss", "validation loss"),
        "Validation accuracy by epoch": learning_curve(runs, "accuracy", "validation accuracy"),
        "Quality against trainable parameters": quality_by_parameters(runs),
        "Weighted F1": bars(runs, "weighted_f1", "weighted F1 (diamond: published)", "{:.3f}", published=True),
        "Time per epoch": bars(runs, "seconds_per_epoch", "seconds per epoch, mean", "{:,.1f} s", published=False),
    }

"""What a search found: a table in the terminal, search.csv, and search.html with its plots, which needs no network.

Best first, by the validation loss. Figures of the test part do not occur: the search never computes them. The command is
`training.search`.
"""

from __future__ import annotations

import csv
import io
import re
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contract.files import write_bytes
from training.trials import Trials, show

if TYPE_CHECKING:
    from collections.abc import Sequence

CSV_FILE = "search.csv"
PAGE_FILE = "search.html"
_FEWEST_FOR_IMPORTANCES = 4
_SHAPES = {"finished": ("o", "#3b82f6"), "pruned": ("x", "#94a3b8")}

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { margin: 0 auto; max-width: 1200px; padding: 1rem; color: #1b1f24; background: #fff;
       font: 16px/1.5 system-ui, sans-serif }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d8dde3 }
pre { padding: .8rem; background: #f5f7f9; white-space: pre-wrap; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto }
</style>
</head>
<body>
<h1>$title</h1>
<p>Chosen by the validation part alone; the test part was not evaluated. The best trial, trained once more and tested:</p>
<pre>$command</pre>
$plots
<div class="wide"><table>
<thead><tr>$head</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
</body>
</html>
""")


def report(trials: Trials, output: Path, command: str) -> None:
    """Print the table and the `command` of the best trial, and write both files into `output`."""
    rows = trials.rows()
    print(f"\n{markdown(rows)}\n\nthe best trial, trained once more and tested:\n  {command}")
    write_bytes(output / CSV_FILE, _csv(rows).encode())
    write_bytes(output / PAGE_FILE, page(rows, draw(rows, importances(trials)), command).encode())
    print(f"wrote {output / CSV_FILE} and {output / PAGE_FILE}")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; the reasons of failed trials are left to the files."""
    names = [name for name in rows[0] if name != "reason"]
    lines = [names, ["---"] * len(names), *([show(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def page(rows: Sequence[dict[str, Any]], plots: str, command: str) -> str:
    """The HTML page; `plots` is an SVG element."""
    body = "\n".join("<tr>" + "".join(f"<td>{escape(show(value))}</td>" for value in row.values()) + "</tr>" for row in rows)
    finished = sum(row["state"] == "finished" for row in rows)
    return _PAGE.substitute(
        title=f"Search: {len(rows)} trials, {finished} finished",
        command=escape(command),
        plots=plots,
        head="".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0]),
        rows=body,
    )


def importances(trials: Trials) -> dict[str, float]:
    """How much each parameter decides the loss (PED-ANOVA, shares of 1); empty with too few finished trials to tell."""
    if len(trials.finished) < _FEWEST_FOR_IMPORTANCES:
        return {}
    return optuna.importance.get_param_importances(trials.study)


def draw(rows: Sequence[dict[str, Any]], shares: dict[str, float]) -> str:
    """History, importances, and loss against learning rate, side by side as one SVG element."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    history, bars, rates = figure.subplots(1, 3)
    told = [row for row in rows if row["loss"] is not None]
    _history(history, told)
    _scatter(rates, told, "learning_rate")
    rates.set(xscale="log", xlabel="learning rate", ylabel="validation loss", title="Loss against learning rate")
    bars.barh(list(shares)[::-1], list(shares.values())[::-1], color="#3b82f6")
    bars.set(title="Importance of the options" if shares else "Importance: too few finished trials", xlabel="share")
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "search", "svg.fonttype": "none"}):  # the same search gives the same file
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()[file.getvalue().index("<svg") :]  # without the prolog, for HTML
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _history(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    _scatter(axes, rows, "trial")
    finished = sorted((row["trial"], row["loss"]) for row in rows if row["state"] == "finished")
    lowest = [min(loss for _, loss in finished[: count + 1]) for count in range(len(finished))]
    axes.step([number for number, _ in finished], lowest, where="post", color="#f59e0b", label="best so far")
    axes.set(xlabel="trial", ylabel="validation loss", title="History")
    axes.legend(frameon=False)


def _scatter(axes: Axes, rows: Sequence[dict[str, Any]], name: str) -> None:
    for state, (marker, colour) in _SHAPES.items():
        points = [(row[name], row["loss"]) for row in rows if row["state"] == state]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=state)

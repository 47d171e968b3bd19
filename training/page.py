"""The HTML page of a comparison: one file that asks nothing of the network, read in light and dark and on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from training.report import COLUMNS, NOT_RUN, Run, beside_full, show_pair

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #1b1f24; --soft: #5b6470; --line: #d8dde3; --back: #ffffff; --shade: #f5f7f9; --bad: #b42318 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #9aa4b0; --line: #30363d; --back: #14171b; --shade: #1b1f24; --bad: #ff8a7a }
}
body { margin: 0 auto; max-width: 1400px; padding: 1rem; color: var(--ink); background: var(--back);
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 0 0 .3rem }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; vertical-align: top;
         border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back) }
@media (max-width: 500px) { th:first-child, td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem } }
thead th { background: var(--shade) } thead th:first-child { background: var(--shade) }
tr:last-child td { border-bottom: 0 }
.published { display: block; color: var(--soft); font-size: .92em }
.failed { color: var(--bad) } td.failed { text-align: left }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.2rem; margin: 1.5rem 0 }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 6px }
figure svg { width: 100%; height: auto }
figure svg text { font-family: system-ui, sans-serif !important }
li { margin: .4rem 0; overflow-wrap: anywhere } .soft { color: var(--soft) }
</style>
</head>
<body>
<h1>$title</h1>
<p>Obtained on the test part, which was read once, with the epoch that the validation part chose;
<span class="soft">below it in grey what was published</span>.</p>
<div class="wide"><table>
<thead><tr><th>run</th>$titles</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
<div class="plots">
$plots
</div>
$notes
</body>
</html>
""")


def render_page(runs: Sequence[Run], plots: Mapping[str, str], *, title: str = "Fine-tuning compared") -> str:
    """The page of `runs` with `plots`, SVG elements by heading."""
    runs = beside_full(runs)
    figures = (f"<figure><h2>{escape(name)}</h2>\n{svg}\n</figure>" for name, svg in plots.items())
    noted = [run for run in runs if run.notes]
    notes = "\n".join(f"<li><strong>{escape(run.name)}</strong>: {_notes(run)}</li>" for run in noted)
    return _PAGE.substitute(
        title=escape(title),
        titles="".join(f"<th>{escape(column.title)}</th>" for column in COLUMNS),
        rows="\n".join(map(_row, runs)),
        plots="\n".join(figures),
        notes=f"<h2>Notes</h2>\n<ul>\n{notes}\n</ul>" if noted else "",
    )


def _row(run: Run) -> str:
    if run.error:
        said = NOT_RUN if run.error == NOT_RUN else "failed, see the notes"
        return f'<tr><td>{escape(run.name)}</td><td class="failed" colspan="{len(COLUMNS)}">{said}</td></tr>'
    cells = []
    for column in COLUMNS:
        published, obtained = show_pair(run, column)
        below = f'<span class="published">{escape(published)}</span>' if published else ""
        cells.append(f"<td>{escape(obtained) or '-'}{below}</td>")
    return f"<tr><td>{escape(run.name)}</td>{''.join(cells)}</tr>"


def _notes(run: Run) -> str:
    return "<br>".join(
        f'<span class="failed">{escape(note)}</span>' if note == run.failure else escape(note) for note in run.notes
    )

"""Keep the pictures of the pages equal to the measurement files: charts of the report as SVG files of their own.

    python -m loadtests.figures docs/measurements docs/figures            # write them
    python -m loadtests.figures docs/measurements docs/figures --check    # exit code 1 when one is stale

They follow the reader's dark or light theme by themselves, as far as the page that shows them lets them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import Failure, UsageError, run_command
from contract.files import write_bytes
from loadtests.charts import WIDTH
from loadtests.readers.registry import sections

FIGURES = {
    "peers": ("Peers", "Throughput at saturation"),
    "engines": ("Engines", "Speed, batches of 32"),
    "training": ("Training", "Training speed"),
}
"""File name -> the report's section and chart."""

HEAD = 30  # height of the title, which the page writes outside the chart
STYLE = """
svg { --ink: #1a1f26; --soft: #5a6572; --line: #dde2e8; --back: #ffffff; --c0: #2563eb; --c1: #d97706; --c2: #059669 }
@media (prefers-color-scheme: dark) { svg { --ink: #e8ebef; --soft: #9da7b3; --line: #2e353e; --back: #12161b; --c0: #6ea8ff;
  --c1: #fbbf4d; --c2: #3ddc97 } }
text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", sans-serif } .label, .value { fill: var(--ink) }
.head { fill: var(--ink); font-size: 14px; font-weight: 600 } .back { fill: var(--back) } .grid { stroke: var(--line) }
.spread { fill: none; stroke: var(--ink); stroke-width: 1.4; opacity: .75 }
.s0 { fill: var(--c0) } .s1 { fill: var(--c1) } .s2 { fill: var(--c2) }
"""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw the pictures of the pages."""

    measurements: Annotated[Path, tyro.conf.Positional] = Path("docs/measurements")
    """Folder of measurement files."""
    output: Annotated[Path, tyro.conf.Positional] = Path("docs/figures")
    """Folder of the SVG files."""
    check: bool = False
    """Change nothing; exit code 1 when a file is not what the measurements say."""


def standalone(figure: str) -> str:
    """A chart of the report, `<figure>` and all, as an SVG document.

    Raises:
        ValueError: it holds no drawing with a title and a size.
    """
    drawing = re.search(r'<svg viewBox="0 0 \d+ (\d+)".*?</title>(<desc.*?)</svg>', figure, re.DOTALL)
    title = escape(_title(figure))
    if not drawing or not title:
        raise ValueError(f"no chart: {figure[:80]!r}")
    height = int(drawing[1]) + HEAD
    inner = re.sub(r' id="c\d+d"', "", drawing[2])  # numbered by the page that it was drawn for
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><title>{title}</title>'
        f'<style>{STYLE}</style><rect class="back" width="{WIDTH}" height="{height}" rx="8"/>'
        f'<text class="head" x="6" y="20">{title}</text>\n<g transform="translate(0 {HEAD})">{inner}</g></svg>\n'
    )


def draw(measurements: Path) -> dict[str, str]:
    """File name -> SVG document, of every one of `FIGURES`. Raises UsageError where its measurement is not there."""
    charts = {(section.name, _title(chart)): chart for section in sections(measurements)[0] for chart in section.charts}
    absent = [f"{title!r} of {section}" for section, title in FIGURES.values() if (section, title) not in charts]
    if absent:
        raise UsageError(f"{measurements} holds nothing for {', '.join(absent)}; python -m loadtests.report says what makes it")
    return {f"{name}.svg": standalone(charts[where]) for name, where in FIGURES.items()}


def _title(figure: str) -> str:
    """What a chart is called; empty where there is none."""
    found = re.search(r"<figcaption>(.*?)</figcaption>", figure)
    return unescape(found[1]) if found else ""


def store(documents: dict[str, str], folder: Path, *, check: bool = False) -> None:
    """Write the documents that are not in the folder already. Raises `Failure` naming them instead where `check` is set."""
    stale = [
        name for name, text in documents.items() if not (folder / name).exists() or (folder / name).read_text("utf-8") != text
    ]
    print(f"{folder}: {len(documents)} figures, {len(stale)} {'stale' if check else 'written'}")
    if check and stale:
        raise Failure(f"stale in {folder}: {', '.join(stale)}; python -m loadtests.figures writes them")
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        write_bytes(folder / name, documents[name].encode())


def main(options: Figures) -> None:
    """Run the command; see the module docstring."""
    store(draw(options.measurements), options.output, check=options.check)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Figures, prog="python -m loadtests.figures", description=__doc__)))

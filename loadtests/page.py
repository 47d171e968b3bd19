"""The frame of the report: one HTML file that asks nothing of the network, dark and light, readable on a phone.

A chart is an SVG (`loadtests.charts`), a table Markdown turned into HTML, with a button that copies the Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

ASSETS = Path(__file__).parent

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header><h1>$title</h1>
$lead
</header>
<nav aria-label="sections"><div>$links<button type="button" id="theme">Dark</button></div></nav>
<main>
$sections
</main>
<footer>$footer</footer>
<script>$script</script>
</body>
</html>
""")

RULE = re.compile(r":?-+:?")


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    name: str
    words: Sequence[str] = ()
    """Paragraphs; text between backticks is set as code."""
    charts: Sequence[str] = ()
    """Figures, as `loadtests.charts` draws them."""
    tables: Sequence[tuple[str, str]] = ()
    """(caption, Markdown)."""


def render_page(title: str, lead: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """The whole page."""
    return _PAGE.substitute(
        title=escape(title),
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        script=(ASSETS / "report.js").read_text(encoding="utf-8"),
        lead="\n".join(map(paragraph, lead)),
        links="".join(f'<a href="#{anchor(section.name)}">{escape(section.name)}</a>' for section in sections),
        sections="\n".join(map(_section, sections)),
        footer=paragraph(footer),
    )


def anchor(name: str) -> str:
    """A heading as an id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def paragraph(text: str) -> str:
    """A paragraph, with `code` set as code."""
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _section(section: Section) -> str:
    parts = [f'<section id="{anchor(section.name)}"><h2>{escape(section.name)}</h2>', *map(paragraph, section.words)]
    if section.charts:
        parts.append('<div class="charts">' + "\n".join(section.charts) + "</div>")
    parts += [table(caption, markdown) for caption, markdown in section.tables]
    return "\n".join([*parts, "</section>"])


def cells_of(line: str) -> list[str]:
    """The cells of one line of a Markdown table; an escaped bar is part of its cell."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def table(caption: str, markdown: str) -> str:
    """Markdown's tables (one, or several with empty lines between) as HTML, with a button that copies the Markdown."""
    blocks = [block.splitlines() for block in markdown.strip().split("\n\n")]
    return (
        f'<figure class="table"><div><figcaption>{escape(caption)}</figcaption>'
        '<button type="button" data-copy>Copy Markdown</button></div>'
        f"<template>{escape(markdown)}</template>{''.join(map(_rows, blocks))}</figure>"
    )


def _rows(lines: Sequence[str]) -> str:
    header, rule, *rows = map(cells_of, lines)
    if len(header) != len(rule) or not all(map(RULE.fullmatch, rule)) or any(len(row) != len(header) for row in rows):
        raise ValueError(f"this is no Markdown table: {lines[:3]}")
    right = [cell.endswith(":") for cell in rule]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{_class(cell, to_right)}>{_inline(cell)}</{tag}>" for cell, to_right in zip(cells, right, strict=True)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{line(header, "th")}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _class(cell: str, to_right: bool) -> str:
    names = [name for name, on in (("right", to_right), ("met", cell == "met"), ("missed", cell == "missed")) if on]
    return f' class="{" ".join(names)}"' if names else ""

"""The frame of the report: one HTML file that asks nothing of the network, dark and light, readable on a phone.

A chart is an SVG (`loadtests.charts`), a table Markdown turned into HTML, with a button that copies the Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

_STYLE = """
:root { color-scheme: light; --ink: #1a1f26; --soft: #5a6572; --line: #dde2e8; --back: #ffffff; --shade: #f5f7fa; --accent: #2459c9;
  --bad: #b42318; --good: #137a4b; --c0: #2563eb; --c1: #d97706; --c2: #059669; --c3: #dc2626; --c4: #7c3aed; --c5: #db2777; --c6: #0e7490;
  --c7: #65a30d; --c8: #92400e; --c9: #64748b }
:root[data-theme="dark"] { color-scheme: dark; --ink: #e8ebef; --soft: #9da7b3; --line: #2e353e; --back: #12161b; --shade: #1a2027;
  --accent: #8db4ff; --bad: #ff8f80; --good: #5fd6a0; --c0: #6ea8ff; --c1: #fbbf4d; --c2: #3ddc97; --c3: #ff7b72; --c4: #b79cff;
  --c5: #ff8cc6; --c6: #4fd1e0; --c7: #b5e26b; --c8: #e0a070; --c9: #a7b3c2 }
@media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) { color-scheme: dark; --ink: #e8ebef; --soft: #9da7b3;
  --line: #2e353e; --back: #12161b; --shade: #1a2027; --accent: #8db4ff; --bad: #ff8f80; --good: #5fd6a0; --c0: #6ea8ff; --c1: #fbbf4d;
  --c2: #3ddc97; --c3: #ff7b72; --c4: #b79cff; --c5: #ff8cc6; --c6: #4fd1e0; --c7: #b5e26b; --c8: #e0a070; --c9: #a7b3c2 } }
* { box-sizing: border-box }
html { scroll-behavior: smooth; scroll-padding-top: 3.4rem }
body { margin: 0; color: var(--ink); background: var(--back); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
header, main, footer { max-width: 1180px; margin: 0 auto; padding: 0 1rem }
header { padding-top: 1.6rem } h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line) }
p { margin: .4rem 0; max-width: 46rem } .soft, footer { color: var(--soft); font-size: .9rem } footer { padding: 2rem 1rem }
nav { position: sticky; top: 0; z-index: 2; background: var(--back); border-bottom: 1px solid var(--line) }
nav div { max-width: 1180px; margin: 0 auto; padding: .45rem 1rem; display: flex; gap: 1rem; align-items: center; overflow-x: auto; white-space: nowrap }
nav a { color: var(--accent); text-decoration: none; font-size: .92rem } nav a:hover { text-decoration: underline }
button { font: inherit; color: var(--ink); background: var(--shade); border: 1px solid var(--line); border-radius: 6px; cursor: pointer;
  font-size: .8rem; padding: .2rem .6rem; min-height: 1.8rem } button:hover { border-color: var(--accent) }
a:focus-visible, button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px } #theme { margin-left: auto }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1rem; margin: 1rem 0; align-items: start }
figure { margin: 0 } .chart, .table { border: 1px solid var(--line); border-radius: 10px; background: var(--shade) }
.chart { padding: .8rem } figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .4rem }
.chart > svg { display: block; width: 100%; height: auto; max-width: 620px; margin: 0 auto; overflow: visible }
.chart text { fill: var(--soft); font-size: 12px; font-family: inherit } .chart .label, .chart .value { fill: var(--ink) }
.grid { stroke: var(--line) } .line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round }
.mark { fill: currentColor } .chart svg rect, .chart svg path, .chart svg circle { fill: currentColor }
.spread { stroke: var(--ink); stroke-width: 1.4; opacity: .75 } .goal { stroke: var(--bad); stroke-width: 1.6; stroke-dasharray: 5 4 }
.event { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 2 3 } .chart svg .span { fill: var(--soft); opacity: .2 }
.chart svg .spread { fill: none } .mark:hover { stroke: var(--ink); stroke-width: 1.5 } .off { display: none }
.legend { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .5rem } .key { display: inline-flex; align-items: center; gap: .35rem;
  background: none; border-color: transparent; padding: .1rem .35rem } .key[aria-pressed="false"] { opacity: .4; text-decoration: line-through }
.s0 { color: var(--c0) } .s1 { color: var(--c1) } .s2 { color: var(--c2) } .s3 { color: var(--c3) } .s4 { color: var(--c4) }
.s5 { color: var(--c5) } .s6 { color: var(--c6) } .s7 { color: var(--c7) } .s8 { color: var(--c8) } .s9 { color: var(--c9) }
.table { margin: 1rem 0; overflow: hidden } .table > div { display: flex; align-items: center; gap: 1rem; padding: .5rem .8rem }
.table > div figcaption { margin: 0 } .table > div button { margin-left: auto } .wide { overflow-x: auto; background: var(--back) }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums }
th, td { padding: .38rem .7rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--line); vertical-align: top }
td:first-child, th:first-child { white-space: normal; min-width: 9rem; position: sticky; left: 0; background: var(--back) }
thead th { font-weight: 600; color: var(--soft) } .right { text-align: right } .met { color: var(--good) } .missed { color: var(--bad) }
code { font-size: .88em; overflow-wrap: anywhere } ul { padding-left: 1.2rem } li { margin: .25rem 0 }
@media (max-width: 520px) { body { font-size: 15px } h1 { font-size: 1.4rem } td:first-child, th:first-child { min-width: 7.5rem } }
@media print { nav, button { display: none } }
"""

_SCRIPT = """
"use strict";
const root = document.documentElement, theme = document.getElementById("theme");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const label = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
label();
for (const key of document.querySelectorAll(".key")) key.addEventListener("click", () => {
  const off = key.getAttribute("aria-pressed") === "true";
  key.setAttribute("aria-pressed", String(!off));
  for (const part of key.closest("figure").querySelectorAll(`:scope > svg [data-series="${key.dataset.series}"]`))
    part.classList.toggle("off", off);
});
const copied = (text) => navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject();
const selected = (text) => {
  const box = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(box); box.select(); const done = document.execCommand("copy"); box.remove();
  if (!done) throw new Error("copy refused");
};
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", async () => {
  const text = button.closest("figure").querySelector("template").content.textContent;
  try { await copied(text).catch(() => selected(text)); button.textContent = "Copied"; }
  catch { button.textContent = "Copy failed"; }
  setTimeout(() => { button.textContent = "Copy Markdown"; }, 1500);
});
"""

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
        style=_STYLE,
        script=_SCRIPT,
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
        return "".join(f"<{tag}{_class(cell, to_right)}>{_inline(cell)}</{tag}>" for cell, to_right in zip(cells, right, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{line(header, "th")}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _class(cell: str, to_right: bool) -> str:
    names = [name for name, on in (("right", to_right), ("met", cell == "met"), ("missed", cell == "missed")) if on]
    return f' class="{" ".join(names)}"' if names else ""

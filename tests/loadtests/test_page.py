"""`loadtests.page`: Markdown's tables as HTML, and a page that asks nothing of the network."""

from __future__ import annotations

import re

import pytest

from loadtests.page import Section, cells_of, render_page, table

MARKDOWN = "| what | ms |\n| --- | --: |\n| a \\| b | 1 |\n| `code` <i> | met |"


def test_cells_are_read_and_an_escaped_bar_is_no_border() -> None:
    assert cells_of("| a \\| b |  | `c` |") == ["a | b", "", "`c`"]


def test_a_table_keeps_its_alignment_and_escapes_its_cells() -> None:
    html = table("T", MARKDOWN)
    assert '<th class="right">ms</th>' in html
    assert "<td>a | b</td>" in html
    assert "<td><code>code</code> &lt;i&gt;</td>" in html
    assert '<td class="right met">met</td>' in html


def test_the_button_copies_the_markdown_itself() -> None:
    html = table("T", MARKDOWN)
    assert "<template>| what | ms |\n" in html and "data-copy" in html


def test_several_tables_may_follow_each_other() -> None:
    assert table("T", f"{MARKDOWN}\n\n{MARKDOWN}").count("<table>") == 2


@pytest.mark.parametrize("broken", ["words", "| a | b |\n| --- |", "| a |\n| --- |\n| 1 | 2 |", "| a |\n| x |"])
def test_what_is_no_table_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"this is no Markdown table|not enough values"):
        table("T", broken)


def test_the_page_links_its_sections_and_nothing_else() -> None:
    page = render_page("Title & more", ["lead `x`"], [Section("Load tests", ["words"]), Section("Peers")], "made")
    assert "<title>Title &amp; more</title>" in page
    assert re.findall(r'href="([^"]*)"', page) == ["data:,", "#load-tests", "#peers"]
    assert {'id="load-tests"', 'id="peers"'} <= set(re.findall(r'id="[a-z-]+"', page))
    assert re.findall(r"https?://|src=|@import|url\(", page) == []

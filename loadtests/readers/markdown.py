"""Markdown tables with padded columns, so that they are read in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right_from: int = 1) -> str:
    """A table whose columns from `right_from` on are aligned to the right; a bar in a cell is escaped."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [header, *rows]]
    widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(header))]
    to_right = [place >= right_from for place in range(len(header))]

    def show(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, to_right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - right) + ":" * right for width, right in zip(widths, to_right, strict=True)]
    return "\n".join([show(lines[0]), show(rule), *map(show, lines[1:])])

"""Keep the tables of the pages equal to the measurement files, so that every number there comes out of a committed file.

    python -m loadtests.tables README.md docs/*.md            # write the tables behind their markers
    python -m loadtests.tables README.md docs/*.md --check    # exit code 1 when one is stale

A marker is a line of its own; the table below it is replaced, as far as lines begin with a bar. PART is one of a file's
tables, where it has several, or "origin": machine, date and versions.

    <!-- table: docs/measurements/peers.json goals -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import Failure, UsageError, run_command
from contract.files import write_bytes
from loadtests.readers.registry import tables_of

MARKER = re.compile(r"^<!-- table: (?P<file>\S+)(?: (?P<part>\S+))? -->\n(?P<gap>\n?)(?P<table>(?:\n*\|.*\n)*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the measured tables into Markdown pages, or check them."""

    pages: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Markdown files with markers."""
    check: bool = False
    """Change nothing; exit code 1 when a table is not its file's."""
    root: Path = Path()
    """Folder that the markers' paths start from."""

    def __post_init__(self) -> None:
        if not self.pages:
            raise UsageError("name at least one page, e.g. README.md")


def refresh(text: str, root: Path) -> tuple[str, list[str], int]:
    """(the page with every table as its file says, the markers whose table was another, how many markers there are)."""
    stale: list[str] = []

    def replace(match: re.Match[str]) -> str:
        wanted = tables_of(root / match["file"], match["part"] or "") + "\n"
        if match["table"] != wanted:
            stale.append(" ".join(filter(None, (match["file"], match["part"]))))
        head = match[0][: match.start("table") - match.start()]
        return head + wanted + ("" if match["table"] else match["gap"])  # a blank line after it stays one

    changed, markers = MARKER.subn(replace, text)
    return changed, stale, markers


def main(options: Tables) -> None:
    """Run the command; see the module docstring."""
    outdated = []
    for page in options.pages:
        try:
            text = page.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {page}: {error}") from error
        changed, stale, markers = refresh(text, options.root)
        outdated += [f"{page}: {name}" for name in stale]
        if stale and not options.check:
            write_bytes(page, changed.encode())
        print(f"{page}: {markers} tables, {len(stale)} {'stale' if options.check else 'written'}")
    if options.check and outdated:
        raise Failure("stale tables; python -m loadtests.tables writes them:\n  " + "\n  ".join(outdated))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Tables, prog="python -m loadtests.tables", description=__doc__)))

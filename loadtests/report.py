"""Everything that was measured as one HTML page: no external request, dark and light, readable on a phone.

    python -m loadtests.report docs/measurements --output build/report.html

Reads the files that are there, says which are missing and what makes them, and refuses one that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import run_command
from contract.files import write_bytes
from loadtests.page import render_page
from loadtests.readers.registry import sections


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make the HTML report of all measurements."""

    measurements: Annotated[Path, tyro.conf.Positional] = Path("docs/measurements")
    """Folder of measurement files."""
    output: Path = Path("build/report.html")
    """HTML file to write."""
    title: str = "BERT on Triton, measured"
    """Heading."""


def report(options: Report) -> None:
    """Run the command; see the module docstring."""
    found, missing = sections(options.measurements)
    lead = ["Every figure below is read from a committed file of a real run; the tables are those of the README."]
    if missing:
        absent = "; ".join(f"{kind.pattern} (`{kind.command}`)" for kind in missing)
        lead.append(f"Not there: {absent}.")
    page = render_page(
        options.title, lead, found, f"Made on {datetime.now(UTC).date().isoformat()} by `python -m loadtests.report`."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(options.output, page.encode())
    print(f"{len(found)} sections, {len(page) / 1024:.0f} KiB: {options.output}")
    for kind in missing:
        print(f"missing: {kind.pattern:<16} {kind.command}")


if __name__ == "__main__":
    run_command(lambda: report(tyro.cli(Report, prog="python -m loadtests.report", description=__doc__)))

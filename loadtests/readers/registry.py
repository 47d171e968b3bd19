"""Which measurement file is which: by its name, its tables and its section, and the command that makes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from contract.command import UsageError
from loadtests.page import Section
from loadtests.readers import demo, engines, flat, load, origin, overload, paired, peers, quality, search, swap, training

ORIGIN = "origin"
Tables = Callable[[Path], dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of measurement."""

    pattern: str
    """Names of its files, or of its folder, in the folder of measurements."""
    command: str
    """Makes it."""
    tables: Tables
    """Markdown by name, of one file."""
    sections: Callable[[list[Path]], list[Section]]
    """Of all its files."""


def _single(section: Callable[[Path], Section]) -> Callable[[list[Path]], list[Section]]:
    return lambda paths: [section(path) for path in paths]


def _together(section: Callable[[list[Path]], Section]) -> Callable[[list[Path]], list[Section]]:
    return lambda paths: [section(paths)]


def _elsewhere(section: Callable[[Path], Section]) -> Callable[[list[Path]], list[Section]]:
    """The same measurement on other machines: each NAME-MACHINE.json has a section of its own."""

    def named(path: Path) -> Section:
        found = section(path)
        return dataclasses.replace(found, name=f"{found.name}, {path.stem.partition('-')[2]}")

    return _single(named)


def _flat(name: str, words: str) -> Callable[[list[Path]], list[Section]]:
    return _single(functools.partial(flat.section, name=name, words=words))


KINDS = (
    Kind(pattern="peers.json", command="make bench-peers", tables=peers.tables, sections=_single(peers.section)),
    Kind(
        pattern="peers-*.json",
        command="python -m loadtests.peers build/merged --output docs/measurements/peers-MACHINE.json",
        tables=peers.tables,
        sections=_elsewhere(peers.section),
    ),
    Kind(pattern="engines.json", command="make bench-engines", tables=engines.tables, sections=_single(engines.section)),
    Kind(
        pattern="engines-*.json",
        command="python -m builders.bench build/merged --output docs/measurements/engines-MACHINE.json",
        tables=engines.tables,
        sections=_elsewhere(engines.section),
    ),
    Kind(pattern="int8.json", command="python -m builders.paired", tables=paired.tables, sections=_single(paired.section)),
    Kind(
        pattern="load-*.json",
        command="python -m loadtests.run SCENARIO --output docs/measurements/load-NAME.json",
        tables=load.tables,
        sections=_together(load.section),
    ),
    Kind(
        pattern="search-*.json", command="python -m loadtests.search", tables=search.tables, sections=_together(search.section)
    ),
    Kind(
        pattern="chaos-swap.json",
        command="python -m tests.serving.chaos_swap",
        tables=swap.tables,
        sections=_single(swap.section),
    ),
    Kind(
        pattern="chaos-swap-tiny.json",
        command="make chaos-swap SWAPS=1000 TINY=1",
        tables=swap.tables,
        sections=_single(swap.section),
    ),
    Kind(
        pattern="chaos-kill.json",
        command="python -m tests.serving.chaos_kill",
        tables=flat.tables,
        sections=_flat("Kills", "Processes of a server under traffic are killed, one after the other."),
    ),
    Kind(
        pattern="overload.json",
        command="python -m tests.serving.overload",
        tables=overload.tables,
        sections=_single(overload.section),
    ),
    Kind(
        pattern="soak.json",
        command="python -m tests.serving.soak",
        tables=flat.tables,
        sections=_flat("Soak", "One server under load for a long time: does anything grow?"),
    ),
    Kind(pattern="training.json", command="make bench-train", tables=training.tables, sections=_single(training.section)),
    Kind(pattern="quality", command="python -m training.quality", tables=quality.tables, sections=_single(quality.section)),
    Kind(pattern="demo-*.json", command="make demo", tables=demo.tables, sections=_together(demo.section)),
)


def kind_of(path: Path) -> Kind:
    """The kind of a file or folder. Raises UsageError for a name that belongs to none."""
    for kind in KINDS:
        if fnmatch(path.name, kind.pattern):
            return kind
    known = ", ".join(kind.pattern for kind in KINDS)
    raise UsageError(f"{path} is no measurement that is known here: {known}; rename it, or add it to {Path(__file__).name}")


def tables_of(path: Path, part: str = "") -> str:
    """A file's tables as Markdown: all of them, the one named, or "origin", machine and versions, which every file has.

    Raises:
        UsageError: the file is missing, or has no such part.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; {kind_of(path).command} makes it")
    if part == ORIGIN:
        return origin.table(path)
    found = kind_of(path).tables(path)
    if part and part not in found:
        raise UsageError(f"{path} has no table {part!r}; it has {', '.join(found)}")
    return found[part] if part else "\n\n".join(found.values())


def sections(folder: Path) -> tuple[list[Section], list[Kind]]:
    """(the sections of what lies in a folder, the kinds of which there is nothing). Raises UsageError for an unknown file."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of measurements; docs/measurements is one")
    present: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" or path.is_dir():
            present.setdefault(kind_of(path).pattern, []).append(path)
    return (
        [section for kind in KINDS if kind.pattern in present for section in kind.sections(present[kind.pattern])],
        [kind for kind in KINDS if kind.pattern not in present],
    )

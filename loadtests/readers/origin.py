"""Where a measurement of any kind comes from: machine, date, release, capacity and versions, out of the file's own fields."""

from __future__ import annotations

from pathlib import Path

from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.markdown import markdown_table

WORDS = ("release", "base", "engine", "data")


def table(path: Path) -> str:
    """Markdown of one row; what the file does not hold has no column."""
    found = read_fields(path)
    machine = found.fields("machine") if "machine" in found else found
    cells = {"machine": _machine(machine)}
    cells |= {name: found.text(name) for name in ("date", *WORDS) if name in found}
    if "capacity_per_s" in found:
        cells["capacity"] = f"{found.number('capacity_per_s'):.1f} requests/s{_size(found)}"
    versions = [part.fields("versions") for part in (found, machine, _ours(found)) if "versions" in part]
    merged = {name: part.text(name) for part in versions for name in part}
    if merged:
        cells["versions"] = ", ".join(f"{name} {version}" for name, version in merged.items())
    return markdown_table(list(cells), [list(cells.values())], right_from=len(cells))


def _machine(machine: Fields) -> str:
    name = next((machine.text(key) for key in ("cpu", "processor") if key in machine), "")
    return ", ".join(filter(None, [name, f"{machine.number('cores'):.0f} cores" if "cores" in machine else ""]))


def _size(found: Fields) -> str:
    """Of a request, where it has more than one text, and what it travels in."""
    way = {"http": " over HTTP", "grpc": " over gRPC"}.get(found.text("protocol"), "") if "protocol" in found else ""
    return f" of {found.number('texts'):.0f} texts of {found.number('tokens'):.0f} tokens{way}" if "tokens" in found else ""


def _ours(found: Fields) -> Fields:
    servers = found.fields("servers") if "servers" in found else found
    return servers.fields("ours") if "ours" in servers else found

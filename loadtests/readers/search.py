"""search-*.json, the search.json of `python -m loadtests.search`: what configurations cost, and how slow they are."""

from __future__ import annotations

from pathlib import Path

from loadtests.charts import Plot, Series, plot
from loadtests.deployment import Setting
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.markdown import markdown_table


def tables(path: Path) -> dict[str, str]:
    """Markdown: the Pareto front."""
    found = read_fields(path)
    asked = f"{found.number('rate'):g} requests/s within p99 {found.number('p99_ms'):g} ms"
    tried = f"{found.number('measured'):.0f} of {found.number('settings'):.0f} settings measured"
    winner = found.fields("winner") if "winner" in found else None
    rows = []
    for row in found.rows("pareto"):
        chosen = winner is not None and _setting(row) == _setting(winner)
        verdict = "the cheapest that serves" if chosen else "serves" if row.flag("serves") else "too slow"
        equal = f"{found.fields('agreement').number(row.text('release')):.2%}"
        rows.append([str(_setting(row)), f"{row.number('cores'):.2f}", f"{row.number('p99_ms'):.1f}", equal, verdict])
    return {"all": markdown_table([f"{asked}: {tried}", "cores used", "p99 ms", "labels of the first release", ""], rows)}


def _setting(row: Fields) -> Setting:
    numbers = {name: int(row.number(name)) for name in ("instances", "threads", "batch", "delay_us")}
    return Setting(release=row.text("release"), buckets=tuple(map(int, row.numbers("buckets"))), **numbers)


def section(paths: list[Path]) -> Section:
    """Every search's front: quality of service against cost."""
    words, series = [], []
    for path in paths:
        found = read_fields(path)
        words.append(
            f"{path.stem}: {found.number('rate'):g} requests/s within p99 {found.number('p99_ms'):g} ms; "
            f"{found.number('measured'):.0f} of {found.number('settings'):.0f} settings measured."
        )
        points = [(row.number("cores"), row.number("p99_ms")) for row in found.rows("pareto")]
        series.append(Series(path.stem, points, [str(_setting(row)) for row in found.rows("pareto")]))
    charts = [plot(Plot("What speed costs: settings that none beats", "cores used", "p99, ms", series))]
    return Section("Search", words, charts, [(path.stem, tables(path)["all"]) for path in paths])

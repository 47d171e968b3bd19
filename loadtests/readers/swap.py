"""chaos-swap.json, of `python -m tests.serving.chaos_swap`: releases swapped under traffic, every second one bad."""

from __future__ import annotations

from pathlib import Path

from loadtests.charts import Bar, Bars, Plot, Series, bars, plot
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.markdown import markdown_table
from loadtests.readers.timeline import timeline_charts

WINDOWS = {"steady": "steady", "flip": "within a second of a flip", "loading": "while a release loads"}
GROWTHS = {
    "pss_mb": ("growth of memory along the swaps of a server", "MB"),
    "sequential_p50_ms": ("growth of the time of a request alone", "ms"),
}


def tables(path: Path) -> dict[str, str]:
    """Markdown: what was done, and what clients noticed."""
    found = read_fields(path)
    counts = found.fields("counts")
    rows = [
        ["model", found.text("release")],
        ["swaps under traffic", f"{found.number('swaps'):,.0f}"],
        ["of them: " + ", ".join(counts), ", ".join(f"{counts.number(kind):,.0f}" for kind in counts)],
        [
            "bad releases refused",
            f"{counts.number('refused') if 'refused' in counts else 0:,.0f} of {found.number('bad_releases'):,.0f}",
        ],
        ["requests failed", f"{found.number('failed'):,.0f} of {found.number('requests'):,.0f}"],
        ["answers of two releases mixed", f"{found.number('mixed'):,.0f}"],
        ["share of requests that fail, upper bound (95 % confidence)", f"{found.number('failure_rate_bound'):.1e}"],
    ]
    for window, words in WINDOWS.items():
        if f"{window}_p99_ms" in found:
            ratio = f", {found.number(f'{window}_ratio'):.2f}x" if f"{window}_ratio" in found else ""
            rows.append([f"p99 at 40 % load, {words}", f"{found.number(f'{window}_p99_ms'):.1f} ms{ratio}"])
    if "slowest_rollback_s" in found:
        rows.append(["slowest rollback", f"{found.number('slowest_rollback_s'):.2f} s"])
    growth = found.fields("growth") if "growth" in found else Fields({}, "")
    for key, (words, unit) in GROWTHS.items():
        if key in growth:
            grown = growth.fields(key)
            rows.append([words, f"{grown.number('growth'):+.1f} {unit} (standard error {grown.number('standard_error'):.1f})"])
    if "restart_s" in found:
        rows.append(["restart beside damaged versions", f"{found.number('restart_s'):.1f} s"])
    if "missed" in found:
        rows.append(["targets missed", "; ".join(found.raw("missed")) or "none"])
    return {"all": markdown_table(["measured", "result"], rows)}


def section(path: Path) -> Section:
    """Memory and latency along the swaps."""
    found = read_fields(path)
    charts = [
        *timeline_charts(found, "Swaps under traffic"),
        _along(found, "pss_mb", "Memory along the swaps", "MB, proportional set size"),
        _along(found, "sequential_p50_ms", "One request in flight along the swaps", "p50, ms"),
    ]
    waits = [
        Bar(words, [("", found.number(f"{window}_p99_ms"))]) for window, words in WINDOWS.items() if f"{window}_p99_ms" in found
    ]
    if waits:
        charts.append(bars(Bars("What a swap costs a caller", "p99 at 40 % load, ms", waits)))
    words = [f"Releases come and go under traffic that retries nothing; release {found.text('release')}."]
    return Section(
        "Swap, tiny model" if found.text("release") == "tiny" else "Swap",
        words,
        [chart for chart in charts if chart],
        [("Swaps", tables(path)["all"])],
    )


def _along(found: Fields, key: str, title: str, unit: str) -> str:
    values = found.numbers(key) if key in found else []
    if not values:
        return ""
    step = found.number("swaps") / len(values)
    points = [(step * (number + 1), value) for number, value in enumerate(values)]
    return plot(Plot(title, "swaps", unit, [Series(unit, points)]))

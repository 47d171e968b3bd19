"""overload.json, of `python -m tests.serving.overload`: goodput, refusals and recovery at multiples of the capacity."""

from __future__ import annotations

from pathlib import Path

from loadtests.charts import Plot, Series, plot
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.markdown import markdown_table
from loadtests.readers.timeline import timeline_charts


def tables(path: Path) -> dict[str, str]:
    """Markdown: one line a phase."""
    found = read_fields(path)
    header = [
        "offered",
        "requests/s",
        "good answers/s (least to greatest round)",
        "of the peak",
        "per core that the generator left",
        "p50 / p99 ms",
        "refused",
        "refusal p99 ms",
        "late",
        "other errors",
        "recovered after",
    ]
    rows = []
    for phase in found.rows("phases"):
        rows.append(
            [
                f"{phase.number('factor'):g}x",
                f"{phase.number('offered_per_s'):.0f}",
                f"{phase.number('goodput_per_s'):.1f}{_spread(phase)}",
                f"{phase.number('of_peak'):.0%}" if "of_peak" in phase else "-",
                f"{phase.number('of_peak_per_core'):.0%}" if "of_peak_per_core" in phase else "-",
                f"{_at(phase, 'answer_ms', 'p50')} / {_at(phase, 'answer_ms', 'p99')}",
                f"{phase.number('refused'):.0f}",
                _at(phase, "refusal_ms", "p99"),
                f"{phase.number('late'):.0f}",
                f"{sum(phase.fields('errors').number(kind) for kind in phase.fields('errors')):.0f}",
                f"{phase.number('recovery_s'):.1f} s" if "recovery_s" in phase else "-",
            ]
        )
    return {"all": markdown_table(header, rows, right_from=0)}


def _spread(phase: Fields) -> str:
    ends = [f"{phase.number(f'{end}_goodput_per_s'):.1f}" for end in ("least", "greatest") if f"{end}_goodput_per_s" in phase]
    return f" ({' to '.join(ends)})" if ends else ""


def _at(phase: Fields, group: str, key: str) -> str:
    return f"{phase.fields(group).number(key):.1f}" if key in phase.fields(group) else "-"


def section(path: Path) -> Section:
    """Goodput against offered load, and how soon a refusal comes."""
    found = read_fields(path)
    phases = found.rows("phases")
    words = [
        f"Capacity {found.number('capacity_per_s'):.1f} requests/s of {found.number('texts'):.0f} texts of about "
        f"{found.number('tokens'):.0f} tokens; an answer is good within {found.number('objective_ms'):.0f} ms of its due time.",
    ]
    offered = [phase.number("offered_per_s") for phase in phases]
    goodput = Series(
        "good answers", [(load, phase.number("goodput_per_s")) for load, phase in zip(offered, phases, strict=True)]
    )
    refused = Series(
        "refused at once",
        [(load, phase.number("offered_per_s") * _share(phase)) for load, phase in zip(offered, phases, strict=True)],
    )
    charts = [plot(Plot("What is offered, and what becomes of it", "requests/s offered", "requests/s", [goodput, refused]))]
    waits = [
        Series(name, points)
        for name, group, key in (
            ("answer p50", "answer_ms", "p50"),
            ("answer p99", "answer_ms", "p99"),
            ("refusal p99", "refusal_ms", "p99"),
        )
        if (
            points := [
                (load, phase.fields(group).number(key))
                for load, phase in zip(offered, phases, strict=True)
                if key in phase.fields(group)
            ]
        )
    ]
    if waits:
        charts.append(
            plot(Plot("How long a caller waits", "requests/s offered", "ms", waits, goal=found.number("objective_ms")))
        )
    charts += timeline_charts(found, "Overload")
    return Section("Overload", words, charts, [("Overload", tables(path)["all"])])


def _share(phase: Fields) -> float:
    """Of the requests of a phase, those refused."""
    answered = phase.number("goodput_per_s") / phase.number("offered_per_s") if phase.number("offered_per_s") else 0.0
    others = phase.number("late") + sum(phase.fields("errors").number(kind) for kind in phase.fields("errors"))
    total = phase.number("refused") + others
    return 0.0 if total == 0 else (1 - answered) * phase.number("refused") / total

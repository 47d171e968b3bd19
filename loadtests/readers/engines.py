"""engines.json, of `make bench-engines`: our engines beside what people run, speed by batch and quality against speed."""

from __future__ import annotations

from pathlib import Path

from contract.command import UsageError
from loadtests.charts import Bar, Bars, Plot, Series, bars, plot
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.markdown import markdown_table
from loadtests.readers.training import spread_bar

OURS = "ours: "
OPENVINO = "openvino"
HEADER = ("samples/s (least to greatest)", "tokens/s", "p50 / p95 / p99 ms", "over transformers", "accuracy", "other labels")


def read_engines(path: Path) -> Fields:
    """The file. Raises UsageError for one of the time when engines were measured on shapes, not on texts."""
    found = read_fields(path)
    if "engines" not in found:
        raise UsageError(f"{path} has no measurements by batch: an older version wrote it; make bench-engines measures again")
    return found


def tables(path: Path) -> dict[str, str]:
    """Markdown by batch size, "1", "32", and "goals", and where it was measured "ceilings"."""
    found = read_engines(path)
    made = {size: _table(size, engines, found.fields("accuracy")) for size, engines in found.fields("engines").every()}
    if "bert_base" in found:
        made["ceilings"] = _ceilings(found)
    return made | {"goals": _goals(found)}


def _ceilings(found: Fields) -> str:
    """Engines of BERT-base's shape beside the fastest large matrix product of their precision."""
    rows = []
    for name, engine in found.fields("bert_base").fields("engines").every():
        ceiling = found.fields("ceilings_gflops").fields(name.split()[-1])
        by = ceiling.text("runtime") if "runtime" in ceiling else "-"
        speeds = (f"{engine.number('gflops'):.0f}", f"{ceiling.number('median'):.0f}")
        rows.append([name, *speeds, by, f"{engine.number('of_ceiling'):.0%}"])
    return markdown_table(["BERT-base, random weights", "GFLOP/s", "ceiling", "product by", "of the ceiling"], rows)


def _goals(found: Fields) -> str:
    rows = []
    for size, goals in found.fields("goals").every():
        best, padding = goals.text("best"), found.fields("padding").fields(size)
        filled = OPENVINO in best and OPENVINO in padding
        padded = f"{padding.number(OPENVINO if filled else 'ours'):.1%}"
        if OPENVINO in best and not filled:  # a file of before what fills a call up was counted
            padded += ", steps not counted"
        rows += [
            [
                f"over transformers fp32, batch {size}",
                goals.text("best"),
                "4x",
                f"{goals.number('over_transformers_fp32'):.2f}x",
            ],
            [
                f"over {goals.text('best_plain')}, batch {size}",
                goals.text("best"),
                "1.3x",
                f"{goals.number('over_best_plain'):.2f}x",
            ],
            [f"padding, batch {size}", best, "at most 3%", padded],
        ]
    if "bert_base" in found:
        engines = [one for one in found.fields("bert_base").fields("engines").every() if not one[0].endswith("fp32")]
        name, nearest = max(engines, key=lambda one: one[1].number("of_ceiling"))
        rows.append(["of the int8 or bf16 ceiling, BERT-base", name, "50%", f"{nearest.number('of_ceiling'):.0%}"])
    return markdown_table(["goal", "engine", "wanted", "measured"], rows)


def _table(size: str, engines: Fields, accuracy: Fields) -> str:
    rows = []
    for name, engine in engines.every():
        speed, waits, quality = engine.fields("samples_per_s"), engine.fields("batch_ms"), accuracy.fields(name)
        rows.append(
            [
                name,
                f"{speed.number('median'):.1f} ({speed.number('min'):.1f} to {speed.number('max'):.1f})",
                f"{engine.fields('tokens_per_s').number('median'):,.0f}",
                " / ".join(f"{waits.number(level):.1f}" for level in ("p50", "p95", "p99")),
                f"{engine.number('speedup'):.2f}x",
                f"{quality.number('accuracy'):.2%}",
                f"{quality.number('flips'):.2%}",
            ]
        )
    return markdown_table([f"batch {size}", *HEADER], rows)


def section(path: Path) -> Section:
    """Speed by batch, quality against speed, and shares of the ceilings."""
    found = read_engines(path)
    tokens, machine = found.fields("tokens"), found.fields("machine")
    words = [
        f"{found.number('texts'):.0f} held-out texts of {found.text('data')}, {tokens.number('mean'):.0f} tokens on average, "
        f"every engine in turn in each of {found.number('rounds'):.0f} rounds; {machine.text('cpu')}, "
        f"{machine.number('threads'):.0f} threads, {found.text('date')}."
    ]
    sizes = found.fields("engines").every()
    charts = [
        bars(Bars(f"Speed, batches of {size}", "texts/s, median and range", _speeds(engines), names=("ours", "others")))
        for size, engines in sizes
    ]
    charts += [_latency(sizes, level) for level in ("p50", "p99")]
    charts += [_quality(size, engines, found.fields("accuracy")) for size, engines in sizes]
    if "bert_base" in found:
        shares = [
            Bar(name, [("", 100 * engine.number("of_ceiling"))])
            for name, engine in found.fields("bert_base").fields("engines").every()
        ]
        charts.append(bars(Bars("BERT-base's shape", "% of the machine's matrix products, same precision and run", shares)))
    return Section("Engines", words, charts, [(f"Engines, batches of {size}", part) for size, part in tables(path).items()])


def _speeds(engines: Fields) -> list[Bar]:
    rows = []
    for name, engine in engines.every():
        plain = spread_bar(name, engine.fields("samples_per_s"))
        rows.append(Bar(name, [("ours" if name.startswith(OURS) else "others", plain.parts[0][1])], plain.spread))
    return rows


def _latency(sizes: list[tuple[str, Fields]], level: str) -> str:
    """Each engine from its smallest batch to its largest: what a batch takes, and what that brings."""
    series = []
    for name, _ in sizes[0][1].every():
        found = [(size, engines.fields(name)) for size, engines in sizes if name in engines]
        points = [(each.fields("samples_per_s").number("median"), each.fields("batch_ms").number(level)) for _, each in found]
        tips = [
            f"batches of {size}: {rate:.1f} texts/s, {level} {ms:.1f} ms"
            for (size, _), (rate, ms) in zip(found, points, strict=True)
        ]
        series.append(Series(name, points, tips))
    batches = " and ".join(size for size, _ in sizes)
    return plot(
        Plot(
            f"Throughput against {level} latency, batches of {batches}",
            "texts/s",
            f"{level} of a batch, ms",
            series,
            log_y=True,
        )
    )


def _quality(size: str, engines: Fields, accuracy: Fields) -> str:
    series = [
        Series(
            name,
            [(engine.fields("samples_per_s").number("median"), 100 * accuracy.fields(name).number("accuracy"))],
            joined=False,
        )
        for name, engine in engines.every()
    ]
    title = f"Quality against speed, batches of {size}"
    return plot(Plot(title, "texts/s", "accuracy, %", series, from_zero=False))

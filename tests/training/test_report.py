"""`training.report`, `training.plots` and `training.page` on runs made by hand: every figure in its place."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import re
from pathlib import Path

import pytest

from contract.command import UsageError
from contract.files import read_json, write_json
from tests.training.made_runs import make_run
from training.page import render_page
from training.plots import all_plots, bars, learning_curve, quality_by_parameters
from training.recipes import find_recipe
from training.report import (
    COLUMNS,
    NOT_RUN,
    Run,
    beside_full,
    format_bytes,
    format_share,
    markdown,
    markdown_table,
    published_of,
    read_run,
    single,
    to_csv,
)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """A LoRA run, one that trains nothing, one that failed."""
    lora = read_run(make_run(tmp_path, "stackoverflow-lora-r8", quality=0.8, epochs=3, seconds=50.0))
    none = read_run(make_run(tmp_path, "yelp-none", quality=0.5))
    return [lora, none, Run(name="imdb-lora", recipe=find_recipe("imdb-lora"), error="out of <memory>")]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_figures_are_those_of_run_json(runs: list[Run]) -> None:
    obtained = runs[0].obtained
    test = runs[0].record["test"]
    assert {name: obtained[name] for name in ("loss", "accuracy", "f1", "weighted_f1")} == {
        name: test[name] for name in ("loss", "accuracy", "f1", "weighted_f1")
    }
    assert obtained["best_epoch"] == 2
    assert (obtained["seconds_per_epoch"], obtained["training_seconds"]) == (52.0, 51.0 + 52.0 + 53.0)
    assert obtained["samples_per_s"] == 24.0
    assert obtained["relative"] == 296_450 / 109_778_690
    assert (obtained["stored_bytes"], obtained["peak_memory_bytes"]) == (1000, 1_234_500_000)


def test_a_run_that_trains_nothing_has_no_epoch_figures(runs: list[Run]) -> None:
    obtained = runs[1].obtained
    absent = ("best_epoch", "seconds_per_epoch", "samples_per_s", "training_seconds", "time_against_full")
    assert {obtained[name] for name in absent} == {None}
    assert (obtained["trainable"], obtained["relative"]) == (0, 0.0)


def test_markdown_has_published_and_obtained_in_every_cell_that_has_both(runs: list[Run]) -> None:
    lines = markdown(runs).splitlines()
    header, _, lora, none, failed = lines[2:7]
    found = dict(zip(cells(header), cells(lora), strict=True))
    assert found == {
        "run": "stackoverflow-lora-r8",
        "loss": r"0.4643 \| 0.2231",
        "accuracy": r"78.31 % \| 80.00 %",
        "macro F1": r"78.31 % \| 76.70 %",
        "weighted F1": "73.40 %",
        "trainable": r"296,450 \| 296,450",
        "of all": r"0.27 % \| 0.27 %",
        "s/epoch": r"2,313.0 \| 52.0",
        "time against full": "",
        "training s": "156.0",
        "samples/s": "24.0",
        "peak memory": "1.23 GB",
        "best epoch": r"2 \| 2",
        "stored": "1.0 kB",
    }
    assert cells(none)[5:8] == [r"0 \| 0", r"0.00 % \| 0.00 %", ""]
    assert cells(failed)[2] == r"85.30 % \| -"
    assert "- imdb-lora: failed: out of <memory>. The article writes r=0.2" in lines[-1]
    assert "base: minilm instead of bert-base-uncased. epochs: 3 instead of 5. gradients: clipped to a norm of 1" in lines[8]


def test_the_time_against_full_is_that_of_the_same_data_and_base(tmp_path: Path) -> None:
    lora, full, overflow, other = (
        read_run(make_run(tmp_path, name, quality=0.8, seconds=seconds))
        for name, seconds in (
            ("stackoverflow-lora-r8-last4", 28.0),
            ("stackoverflow-bert-base-full", 58.0),
            ("stackoverflow-bertoverflow-full", 88.0),
            ("imdb-full", 500.0),
        )
    )
    runs = beside_full([lora, full, overflow, other, Run(name="yelp-full", recipe=find_recipe("yelp-full"), error="x")])
    obtained = [run.obtained["time_against_full"] for run in runs]
    assert obtained == [30 / 60, 1.0, 90 / 60, 1.0, None]
    published = [published_of(run, "time_against_full") for run in runs]
    assert published == [1529 / 2909, 1.0, None, None, None]  # BERTOverflow is another base than that of `full`
    assert r"0.53 \| 0.50" in markdown([lora, full])
    rows = list(csv.DictReader(io.StringIO(to_csv([lora, full]))))
    assert (float(rows[0]["time_against_full"]), float(rows[0]["published_time_against_full"])) == (0.5, 1529 / 2909)
    assert "0.50<span" in render_page([lora, full], {})


def test_no_full_run_of_another_base_or_beside_numbers_is_the_measure(tmp_path: Path) -> None:
    lora = read_run(make_run(tmp_path, "stackoverflow-lora-r8", quality=0.8))
    tabular = read_run(make_run(tmp_path, "stackoverflow-tabular-full", quality=0.8))
    full = read_run(make_run(tmp_path, "stackoverflow-bert-base-full", quality=0.8))
    elsewhere = dataclasses.replace(full, record=full.record | {"base": {"source": "bert-base-uncased"}})
    assert [run.full for run in beside_full([lora, tabular])] == [None, None]
    assert beside_full([lora, elsewhere])[0].full is None
    assert beside_full([tabular, full, lora])[0].full == full


def test_fewer_rows_than_published_are_a_note(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "yelp-full", quality=0.9))
    data = run.record["data"] | {"parts": {"train": {"rows": 6_000}, "test": {"rows": 2_000}}}
    fewer = dataclasses.replace(run, record=run.record | {"data": data})
    assert "train: 6,000 rows instead of 10,000" in fewer.notes
    assert "yelp-full: base: minilm instead of bert-base-cased. train: 6,000 rows instead of 10,000." in markdown([fewer])


def test_a_run_that_never_ran_is_no_failed_one() -> None:
    run = Run(name="imdb-full", recipe=find_recipe("imdb-full"), error=NOT_RUN)
    assert run.notes[0] == "not run"
    page = render_page([run], {})
    assert f'<td class="failed" colspan="{len(COLUMNS)}">not run</td>' in page
    assert '<span class="failed">not run</span>' in page


def test_the_csv_holds_raw_numbers(runs: list[Run]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(runs))))
    assert [row["run"] for row in rows] == [run.name for run in runs]
    assert float(rows[0]["accuracy"]) == 0.8
    assert float(rows[0]["published_accuracy"]) == 0.7831
    assert (rows[0]["trainable"], rows[0]["total"], rows[0]["base"]) == ("296450", "109778690", "minilm")
    assert (rows[0]["strategy"], rows[1]["best_epoch"], rows[2]["loss"]) == ("lora", "", "")
    test = runs[0].record["test"]
    assert (float(rows[0]["precision"]), float(rows[0]["recall"])) == (test["precision"], test["recall"])
    assert (rows[0]["rank"], rows[0]["alpha"], rows[1]["rank"], rows[2]["alpha"]) == ("8", "16.0", "", "")
    assert rows[2]["notes"].startswith("failed: out of <memory> | ")


def test_a_run_of_ones_own_has_no_published_figures(tmp_path: Path) -> None:
    own = make_run(tmp_path, "yelp-full", quality=0.9).rename(tmp_path / "mine")
    run = read_run(own)
    assert (run.name, run.recipe, run.notes) == ("mine", None, [])
    assert r"\|" not in markdown([run])


def test_one_run_is_shown_as_published_and_obtained(runs: list[Run]) -> None:
    lines = single(runs[0]).splitlines()
    assert cells(lines[0]) == ["", "published", "obtained"]
    assert ["accuracy", "78.31 %", "80.00 %"] in [cells(line) for line in lines]
    assert ["weighted F1", "-", "73.40 %"] in [cells(line) for line in lines]
    assert "time against full" not in [cells(line)[0] for line in lines]  # there is nothing beside it


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*run\.json"):
        read_run(tmp_path)
    folder = make_run(tmp_path, "yelp-full", quality=0.9)
    record = read_json(folder / "run.json")
    del record["strategy"], record["test"]
    write_json(folder / "run.json", record)
    with pytest.raises(UsageError, match=r"run\.json lacks strategy, test"):
        read_run(folder)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.78574, "78.57 %"), (0.0, "0.00 %"), (0.000271, "0.027 %"), (0.0000142, "0.0014 %"), (1.0, "100.00 %")],
)
def test_shares(value: float, shown: str) -> None:
    assert format_share(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(999, "1.0 kB"), (1_190_000, "1.19 MB"), (2_345_000_000, "2.35 GB")])
def test_bytes(value: float, shown: str) -> None:
    assert format_bytes(value) == shown


def test_a_table_is_aligned() -> None:
    text = markdown_table(["name", "n"], [["a", "1"], ["long name", "10,000"]], right=["n"])
    assert text.splitlines() == [
        "| name      |      n |",
        "| --------- | -----: |",
        "| a         |      1 |",
        "| long name | 10,000 |",
    ]


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch, the table's cells, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "srcset", "data"} and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")
        if tag in {"script", "iframe", "img", "object", "base"}:
            self.fetched.append(tag)
        if tag not in {"meta", "br", "link"}:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data + " "


def test_the_page_asks_nothing_of_the_network_and_is_well_formed(runs: list[Run]) -> None:
    text = render_page(runs, all_plots(runs))
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.cells[0].strip() == "stackoverflow-lora-r8"
    assert page.cells[2].split() == ["80.00", "%", "78.31", "%"]
    assert len(page.cells) == 2 * (len(COLUMNS) + 1) + 2
    assert "out of &lt;memory&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_the_plots_take_the_ink_of_the_page_and_are_the_same_every_time(runs: list[Run]) -> None:
    plots = all_plots(runs)
    assert list(plots) == [
        "Validation loss by epoch",
        "Validation accuracy by epoch",
        "Quality against trainable parameters",
        "Weighted F1",
        "Time per epoch",
    ]
    assert plots == all_plots(runs)
    for svg in plots.values():
        assert svg.startswith('<svg role="img" aria-label="')
        assert "currentColor" in svg
        assert "#000000" not in svg
        assert "#ffffff" not in svg
        assert not re.match(r"<svg[^>]* (width|height)=", svg)


def words(svg: str) -> list[str]:
    """The text of the plot, in the order of drawing."""
    return [text.strip() for text in re.findall(r"<text [^>]*>([^<]*)</text>", svg)]


def test_every_plot_names_its_runs_and_figures(runs: list[Run]) -> None:
    assert "stackoverflow-lora-r8" in words(learning_curve(runs, "loss", "validation loss"))
    assert "yelp-none" not in words(learning_curve(runs, "loss", "validation loss"))  # it has no epochs
    quality = words(quality_by_parameters(runs))
    assert {"stackoverflow-lora-r8: 296,450", "yelp-none: 0"} <= set(quality)
    shown = words(bars(runs, "weighted_f1", "weighted F1", "{:.3f}", published=True))
    assert {"stackoverflow-lora-r8", "0.734", "yelp-none", "0.434"} <= set(shown)
    assert "52.0 s" in words(bars(runs, "seconds_per_epoch", "seconds", "{:,.1f} s", published=False))


def test_plots_of_failures_alone_are_empty_and_no_error(runs: list[Run]) -> None:
    assert len(all_plots(runs[2:])) == 5

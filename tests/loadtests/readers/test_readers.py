"""Every kind of measurement: its table holds the file's figures, and a wrong type or an unknown file is an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from contract.files import write_json
from loadtests.charts import Plot
from loadtests.page import cells_of
from loadtests.readers import engines, flat, load, overload, paired, peers, search, swap
from loadtests.readers.fields import Fields
from loadtests.readers.histogram import histogram
from loadtests.readers.markdown import markdown_table
from loadtests.readers.registry import KINDS, kind_of, sections, tables_of
from tests.loadtests import made

ROOT = Path(__file__).resolve().parents[3]
MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "peers.json": made.peers_file,
    "engines.json": made.engines_file,
    "int8.json": made.int8_file,
    "load-steady.json": lambda: made.load_file("steady"),
    "search-fifty.json": made.search_file,
    "chaos-swap.json": made.swap_file,
    "chaos-swap-tiny.json": made.tiny_swap_file,
    "overload.json": made.overload_file,
    "soak.json": made.soak_file,
}


def written(folder: Path, name: str, **changes: Any) -> Path:
    write_json(folder / name, MADE[name]() | changes)
    return folder / name


def rows(markdown: str) -> list[list[str]]:
    return [cells_of(line) for number, line in enumerate(markdown.splitlines()) if number != 1]


def test_a_table_is_aligned_and_its_bars_are_escaped() -> None:
    assert markdown_table(["a", "bb"], [["x|y", "1"]]) == "| a    |  bb |\n| ---- | --: |\n| x\\|y |   1 |"


def test_the_goals_table_says_what_was_found_and_against_whom(tmp_path: Path) -> None:
    found = rows(peers.tables(written(tmp_path, "peers.json"))["goals"])
    assert found[0] == ["goal", "wanted", "found", "verdict", "against"]
    ratios = (100 / 30, 101 / 30)
    spread = f"{sum(ratios) / 2:.2f}x ({ratios[0]:.2f} to {ratios[1]:.2f})"
    assert found[1] == ["throughput against the best peer at its default", ">= 3x", spread, "met", "fast"]
    assert len(found) == 9


def test_the_servers_are_ours_and_then_the_fastest_first(tmp_path: Path) -> None:
    found = rows(peers.tables(written(tmp_path, "peers.json"))["servers"])
    assert [row[0] for row in found[1:]] == [
        "BERT on Triton (ours)",
        "Fast, bfloat16, batches",
        "Fast, defaults",
        "Plain <server>, defaults",
    ]
    assert found[1][1] == "100.5"  # the median of 100 and 101
    assert found[1][5:7] == ["399 of 400", "350"]
    assert found[1][-1] == "25.0%"


def test_a_goal_that_was_not_measured_says_so(tmp_path: Path) -> None:
    goals = [made.peers_file()["goals"][0] | {"median": None, "min": None, "max": None, "met": None, "against": []}]
    found = rows(peers.tables(written(tmp_path, "peers.json", goals=goals))["goals"])
    assert found[1][2:] == ["not measured", "", ""]


def test_a_lone_request_of_ours_is_split(tmp_path: Path) -> None:
    found = rows(peers.tables(written(tmp_path, "peers.json"))["alone"])
    assert found == [
        ["one request in flight, p50", "gRPC", "HTTP"],
        ["total", "9.10 ms", "8.90 ms"],
        ["tokenizer compute", "0.40 ms", "0.40 ms"],
        ["engine compute", "8.00 ms", "8.00 ms"],
        ["beyond", "0.70 ms", "0.50 ms"],
        ["beyond, of it in queues", "0.20 ms", "0.20 ms"],
    ]
    content = made.peers_file()
    for each in content["rounds"].values():
        del each["ours"]["alone_http"]
    write_json(tmp_path / "peers.json", content)
    assert rows(peers.tables(tmp_path / "peers.json")["alone"])[1] == ["total", "9.10 ms", "-"]


def test_the_peers_section_names_what_could_not_be_measured(tmp_path: Path) -> None:
    path = written(tmp_path, "peers.json")
    section = peers.section(path)
    assert rows(peers.tables(path)["failed"])[1:] == [
        ["Plain <server>, defaults", "the server ended with code 139: ... Segmentation fault"]
    ]
    assert section.tables[-1] == ("Not measured", peers.tables(path)["failed"])
    assert len(section.charts) == 7
    assert "failed" not in peers.tables(written(tmp_path, "peers.json", failed={}))


def test_a_server_without_answers_under_a_load_has_dashes(tmp_path: Path) -> None:
    content = made.peers_file(rounds=1)
    content["rounds"]["1"]["plain"]["closed"]["32"] = {"users": 32, "requests_per_s": 0.0, "error_rate": 1.0, "failure": "none"}
    write_json(tmp_path / "peers.json", content)
    found = rows(peers.tables(tmp_path / "peers.json")["servers"])
    assert found[-1][4] == "- / -"
    assert peers.section(tmp_path / "peers.json").charts


def test_few_answers_have_no_p99_and_a_load_that_was_not_steady_is_marked(tmp_path: Path) -> None:
    content = made.peers_file(rounds=1)
    for group, key, rates in (("closed", "1", 99), ("open", "0.5", 110)):
        content["rounds"]["1"]["plain"][group][key] |= {"requests": rates, "p50_ms": 7.0, "p99_ms": 9.0, "error_rate": 0.1}
    content["rounds"]["1"]["plain"]["open"]["0.8"] |= {"requests": 100, "p50_ms": 7.0, "p99_ms": 9.0, "drift": "goes up"}
    write_json(tmp_path / "peers.json", content)
    found = peers.tables(tmp_path / "peers.json")
    assert rows(found["servers"])[-1][2] == "7.0 / -"
    assert [rows(found["open"])[-1][place] for place in (2, 4)] == ["7.0 / -", "7.0 / 9.0 ~"]


def test_the_load_table_carries_intervals_and_refusals(tmp_path: Path) -> None:
    found = rows(load.tables(written(tmp_path, "load-steady.json", refusals=["not steady"]))["all"])
    assert found[1] == ["steady", "open", "40.0 (36.0 to 44.0)", "10.0", "30.0 (25.0 to 35.0)", "0.00%", "12%", "not steady"]


def test_the_stages_of_a_load_are_a_table_where_they_were_measured(tmp_path: Path) -> None:
    found = rows(load.tables(written(tmp_path, "load-steady.json"))["stages"])
    assert found[0] == ["steady, mean of a request", "time", "share"]
    assert found[3] == ["tokenizer compute", "0.40 ms", "4%"]
    assert found[-1] == ["total", "11.00 ms", "100%"]
    assert "stages" not in load.tables(written(tmp_path, "load-steady.json", stages={}))


def test_a_load_result_of_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"load-steady\.json has schema 2, and 1 is read here"):
        load.tables(written(tmp_path, "load-steady.json", schema=2))


def test_the_search_table_marks_the_winner(tmp_path: Path) -> None:
    found = rows(search.tables(written(tmp_path, "search-fifty.json"))["all"])
    assert found[0][0] == "50 requests/s within p99 100 ms: 12 of 48 settings measured"
    assert [row[-2:] for row in found[1:]] == [
        ["99.80%", "too slow"],
        ["99.80%", "the cheapest that serves"],
        ["99.80%", "serves"],
    ]
    assert rows(search.tables(written(tmp_path, "search-fifty.json", winner=None))["all"])[2][-1] == "serves"


def test_settings_that_differ_in_batch_or_buckets_alone_are_told_apart(tmp_path: Path) -> None:
    row = made.search_file()["pareto"][1]
    front = [row, row | {"batch": 8}, row | {"buckets": [64, 512]}]
    found = rows(search.tables(written(tmp_path, "search-fifty.json", pareto=front))["all"])
    assert len({line[0] for line in found[1:]}) == 3
    assert [line[-1] for line in found[1:]] == ["the cheapest that serves", "serves", "serves"]


def test_the_swap_table_counts_what_clients_noticed(tmp_path: Path) -> None:
    found: dict[str, str] = dict(map(tuple, rows(swap.tables(written(tmp_path, "chaos-swap.json"))["all"])))  # type: ignore[arg-type]
    assert found["requests failed"] == "0 of 12,345"
    assert found["bad releases refused"] == "50 of 50"
    assert found["p99 at 40 % load, while a release loads"] == "90.0 ms, 3.00x"


def test_the_swap_table_has_growth_and_missed_targets_where_the_file_has_them(tmp_path: Path) -> None:
    table = swap.tables(written(tmp_path, "chaos-swap-tiny.json"))["all"]
    found: dict[str, str] = dict(map(tuple, rows(table)))  # type: ignore[arg-type]
    assert found["model"] == "tiny"
    assert found["slowest rollback"] == "0.31 s"
    assert found["growth of memory along the swaps of a server"] == "+1.5 MB (standard error 2.0)"
    assert found["targets missed"] == "flip_ratio is 1.3, allowed 1.25"


def test_swaps_without_latency_have_fewer_rows_and_charts(tmp_path: Path) -> None:
    left_out = ("p99", "sequential", "timeline")
    content = {key: value for key, value in made.swap_file().items() if not any(part in key for part in left_out)}
    write_json(tmp_path / "chaos-swap.json", content | {"sequential_p50_ms": []})
    assert len(swap.section(tmp_path / "chaos-swap.json").charts) == 1


def test_a_histogram_holds_every_request_once(tmp_path: Path) -> None:
    chart = load.section([written(tmp_path, "load-steady.json")]).charts[0]
    assert "<title id" in chart and "Latency histogram" in chart
    made_up = Fields(made.load_file("steady")["quantiles_ms"], "made")
    drawn: list[Plot] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loadtests.readers.histogram.plot", drawn.append)
        histogram("Latency histogram", [("steady", made_up)])
    shares = [up for _, up in drawn[0].series[0].points[::2]]
    assert sum(shares) == pytest.approx(100)
    times = [across for across, _ in drawn[0].series[0].points]
    assert times == sorted(times) and times[0] == made_up.number("0") and times[-1] == pytest.approx(made_up.number("100"))


def test_the_engines_are_drawn_from_their_small_batch_to_the_large_one(tmp_path: Path) -> None:
    charts = engines.section(written(tmp_path, "engines.json")).charts
    found = [chart for chart in charts if "latency, batches of 1 and 32</title>" in chart]
    assert len(found) == 2
    assert "batches of 32: 100.0 texts/s, p50 10.0 ms" in found[0] and "p99 12.0 ms" in found[1]


def test_the_overload_table_has_a_line_for_each_phase(tmp_path: Path) -> None:
    found = rows(overload.tables(written(tmp_path, "overload.json"))["all"])
    assert [row[0] for row in found[1:]] == ["0.5x", "1x", "2x", "5x"]
    assert found[3][2] == "19.4" and found[3][4] == "100%" and found[3][7] == "3.0"
    assert found[1][7] == "-"


def test_scalars_of_a_flat_file_are_rows_and_series_are_charts(tmp_path: Path) -> None:
    section = flat.section(written(tmp_path, "soak.json"), "Soak", "words")
    found: dict[str, str] = dict(map(tuple, rows(section.tables[0][1])))  # type: ignore[arg-type]
    assert (found["requests"], found["steady"], found["minutes"]) == ("54,000", "yes", "30")
    assert len(section.charts) == 3


def test_the_engines_tables_have_a_line_for_each_engine(tmp_path: Path) -> None:
    found = engines.tables(written(tmp_path, "engines.json"))
    assert list(found) == ["1", "32", "ceilings", "goals"]
    assert rows(found["32"])[1] == [
        "ours: onnxruntime int8",
        "100.0 (90.0 to 110.0)",
        "9,000",
        "10.0 / 11.0 / 12.0",
        "5.00x",
        "78.50%",
        "0.40%",
    ]


def test_the_engines_goals_and_ceilings_are_tables_of_files_with_the_runtime_and_without(tmp_path: Path) -> None:
    found = engines.tables(written(tmp_path, "engines.json"))
    assert rows(found["ceilings"])[1] == ["ours: onnxruntime int8", "1000", "1430", "openvino", "70%"]
    measured = {row[0]: row[3] for row in rows(found["goals"])[1:]}
    assert measured == {
        "over transformers fp32, batch 32": "6.50x",
        "over plain openvino, batch 32": "2.50x",
        "padding, batch 32": "2.5%",
        "of the int8 or bf16 ceiling, BERT-base": "70%",
    }
    older = made.engines_file()
    del older["ceilings_gflops"]["int8"]["runtime"], older["padding"]["32"]["openvino"]
    write_json(tmp_path / "engines.json", older)
    found = engines.tables(tmp_path / "engines.json")
    assert rows(found["ceilings"])[1][3] == "-"
    assert "1.5%, steps not counted" in found["goals"]


def test_the_precision_table_says_what_int8_costs(tmp_path: Path) -> None:
    found = rows(paired.tables(written(tmp_path, "int8.json"))["all"])
    assert found[1] == ["onnxruntime fp32", "77.50%", "-", "-", "-", "-", "-", "-"]
    assert found[2] == ["openvino int8", "77.40%", "-0.10 (0.20)", "60 / 55", "0.7", "2.30%", "1.00%", "kept"]


def test_an_engines_file_of_the_older_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "engines.json", {"ms": {}})
    with pytest.raises(UsageError, match="an older version wrote it; make bench-engines measures again"):
        engines.tables(tmp_path / "engines.json")


@pytest.mark.parametrize("name", MADE)
def test_a_wrong_type_anywhere_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    text = json.dumps(MADE[name]())
    numbers = {"peers.json": '"peak_per_s": 30', "load-steady.json": '"error_rate": 0.0', "search-fifty.json": '"cores": 0.5'}
    numbers |= {
        "engines.json": '"speedup": 5.0',
        "int8.json": '"flips": 0.023',
        "chaos-swap.json": '"mixed": 0',
        "chaos-swap-tiny.json": '"mixed": 0',
        "overload.json": '"goodput_per_s": 10.0',
        "soak.json": '"pss_mb": 400.0',
    }
    assert numbers[name] in text
    (tmp_path / name).write_text(text.replace(numbers[name], numbers[name].split(":")[0] + ': "many"', 1))
    with pytest.raises(UsageError, match=rf"{name}.* is str 'many'; a number is needed"):
        kind_of(tmp_path / name).sections([tmp_path / name])


@pytest.mark.parametrize("name", ["peer.json", "engines.txt", "notes.json", "load.json"])
def test_an_unknown_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"{name} is no measurement that is known here: peers\.json, peers-\*\.json, engines\.json"
    ):
        kind_of(tmp_path / name)


def test_an_unknown_file_in_the_folder_stops_the_report(tmp_path: Path) -> None:
    write_json(tmp_path / "strange.json", {})
    with pytest.raises(UsageError, match=r"strange\.json is no measurement"):
        sections(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder of measurements"):
        sections(tmp_path / "absent")


def test_what_is_there_becomes_sections_and_the_rest_is_missing(tmp_path: Path) -> None:
    made.make_measurements(tmp_path)
    found, missing = sections(tmp_path)
    assert [section.name for section in found] == [
        "Peers",
        "Engines",
        "Precision",
        "Load",
        "Search",
        "Swap",
        "Swap, tiny model",
        "Overload",
        "Soak",
    ]
    assert {kind.pattern for kind in missing} | {"peers.json", "load-*.json", "search-*.json"} < {
        kind.pattern for kind in KINDS
    }
    assert len(found) + len(missing) == len(KINDS)


def test_another_machine_has_a_section_of_its_own(tmp_path: Path) -> None:
    for name in ("peers.json", "peers-amx.json", "peers-two-cores.json"):
        write_json(tmp_path / name, made.peers_file())
    assert [section.name for section in sections(tmp_path)[0]] == ["Peers", "Peers, amx", "Peers, two-cores"]


def test_a_part_of_a_files_tables_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "peers.json")
    assert tables_of(path, "goals") == peers.tables(path)["goals"]
    assert tables_of(path).count("\n\n") == 5
    with pytest.raises(UsageError, match="has no table 'goal'; it has goals, servers, open, alone, versions, failed"):
        tables_of(path, "goal")


def test_where_a_file_comes_from_is_read_out_of_it(tmp_path: Path) -> None:
    found = rows(tables_of(written(tmp_path, "peers.json"), "origin"))
    assert found == [
        ["machine", "date", "engine", "versions"],
        ["Made Up 9000, 2 cores", "2026-01-02", "onnxruntime int8", "onnx 1.23.2"],
    ]
    header, line = rows(tables_of(written(tmp_path, "overload.json", capacity_per_s=31.6, texts=8, tokens=32), "origin"))
    assert line[header.index("capacity")] == "31.6 requests/s of 8 texts of 32 tokens"


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "measurements").glob("*.json")), ids=lambda path: path.name)
def test_every_committed_measurement_says_where_it_comes_from(path: Path) -> None:
    assert "cores" in tables_of(path, "origin")


def test_a_missing_file_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"peers\.json does not exist; make bench-peers makes it"):
        tables_of(tmp_path / "peers.json")


def test_every_file_in_the_repository_is_known() -> None:
    for path in (ROOT / "docs" / "measurements").iterdir():
        assert kind_of(path).command

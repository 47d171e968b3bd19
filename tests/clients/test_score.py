"""`python -m clients.score` over a transport in memory: one row out a row in, in order, whatever the rows are."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from clients import AsyncClassifier, BadRequest
from clients.score import score
from clients.scoring import Result, Row, Scorer, in_order
from contract.command import Failure, UsageError
from contract.tensors import MAX_TEXT_BYTES
from tests.clients.async_memory import AsyncMemoryTransport
from tests.clients.memory import RELEASE_ID, logits_of
from tests.clients.scored import Serve, label_of, options_of, parquet_rows, read_csv, write_csv

PIECES = ["a", "word", " ", ",", '"', "\n", "\r", "\r\n", "'", "木", "é", "\U0001f600", "\t", "007", "\0"]


def random_text(draw: random.Random) -> str:
    return "".join(draw.choices(PIECES, k=draw.randrange(0, 9)))


@pytest.mark.parametrize("seed", range(12))
def test_any_table_gets_one_row_a_row_in_order_with_its_columns(serve: Serve, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    rows = [[f"{number:05d}", random_text(draw), random_text(draw)] for number in range(draw.choice([0, 1, 9, 10, 11, 137]))]
    write_csv(tmp_path / "in.csv", rows, ("id", "text", "note"))
    serve(turns=draw.randrange(1, 4))
    target = draw.choice(["out.csv", "out.parquet"])
    sizes: dict[str, Any] = {
        "part_rows": draw.choice([1, 7, 10, 500]),
        "batch": draw.choice([1, 3, 64]),
        "in_flight": draw.choice([1, 4]),
    }
    summary = score(options_of(tmp_path, target=target, **sizes))
    if target == "out.csv":
        found = read_csv(tmp_path / target)
    else:
        found = [
            {key: "" if cell is None else str(cell) for key, cell in row.items()} for row in parquet_rows(tmp_path / target)
        ]
    assert [[row["id"], row["text"], row["note"]] for row in found] == rows
    for row in found:
        if row["text"].strip():
            assert (row["label"], row["release"], row["error"]) == (label_of(row["text"]), RELEASE_ID.decode(), "")
            assert row["truncated"] == str(len(row["text"].encode()) > 20)
            assert 1 / 3 <= float(row["score"]) <= 1
        else:
            assert (row["label"], row["error"]) == ("", "the text is empty: there is nothing to classify")
    assert summary.rows == len(rows)
    assert summary.errors == sum(not row[1].strip() for row in rows)
    assert sum(summary.labels.values()) == summary.rows - summary.errors
    assert not (tmp_path / f"{target}.parts").exists()


def test_requests_are_full_and_no_text_is_sent_twice(serve: Serve, tmp_path: Path) -> None:
    write_csv(tmp_path / "in.csv", [[str(number), f"text {number}"] for number in range(1000)])
    transport = serve()
    score(options_of(tmp_path, part_rows=256, batch=64))
    assert sorted(map(len, transport.inner.requests)) == [1, 40] + [64] * 15  # one asks which features are read
    assert len({text for request in transport.inner.requests for text in request}) == 1 + 1000


def test_every_kind_of_bad_row_gets_its_own_error_and_the_others_their_labels(serve: Serve, tmp_path: Path) -> None:
    lines = [
        b"id,text",
        b"0,good",
        b"1,",
        b"2,caf\xe9",
        b"3",
        b"4,too,many",
        b'5,"two\nlines"',
        b"",
        b"6," + b"x" * (MAX_TEXT_BYTES + 1),
    ]
    (tmp_path / "in.csv").write_bytes(b"\r\n".join([*lines, b"7,good too"]))
    serve()
    assert score(options_of(tmp_path, keep=("id",))).errors == 5
    said = {row["id"]: row["error"] for row in read_csv(tmp_path / "out.csv")}
    assert list(said) == list("01234567")
    assert said["0"] == said["5"] == said["7"] == ""
    assert said["1"] == "the text is empty: there is nothing to classify"
    assert said["2"].startswith("the text is not valid Unicode")
    assert said["3"] == "line 5 has 1 cells, the header 2"
    assert said["4"] == "line 6 has 3 cells, the header 2"
    assert said["6"] == f"the text has {MAX_TEXT_BYTES + 1} bytes; at most {MAX_TEXT_BYTES} are allowed: shorten it"


def test_what_is_no_utf8_is_written_as_replacement_characters(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"id,text\r\ncaf\xe9,fine\r\n")
    serve()
    for target in ("out.csv", "out.parquet"):
        score(options_of(tmp_path, target=target))
    assert read_csv(tmp_path / "out.csv")[0]["id"].startswith("caf\ufffd")
    assert parquet_rows(tmp_path / "out.parquet")[0]["id"].startswith("caf\ufffd")


def test_json_lines_keep_strings_and_write_the_rest_as_json(serve: Serve, tmp_path: Path) -> None:
    rows = [{"text": "one", "n": 1, "tags": ["a", "b"]}, {"text": None, "n": None}, {"n": 2, "text": 5}]
    lines = [json.dumps(row) for row in rows] + ["{broken", "[1]", "", json.dumps({"text": "last"})]
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    serve()
    score(options_of(tmp_path, "in.jsonl.gz", "out.parquet"))
    found = parquet_rows(tmp_path / "out.parquet")
    assert [(row["text"], row["n"], row["tags"]) for row in found[:3]] == [
        ("one", "1", '["a", "b"]'),
        (None, None, None),
        ("5", "2", None),
    ]
    assert found[0]["label"] == label_of("one")
    assert found[1]["error"] == "the text is a NoneType; a str is needed"
    assert found[3]["error"].startswith("line 4 is not JSON")
    assert found[4]["error"] == "line 5 is a JSON list, not an object"
    assert found[5]["label"] == label_of("last")


@pytest.mark.parametrize("target", ["out.parquet", "out.csv"])
def test_parquet_columns_keep_their_types_and_row_groups_do_not_matter(serve: Serve, tmp_path: Path, target: str) -> None:
    texts = [None if number % 9 == 5 else f"text {number}" for number in range(57)]
    table = pyarrow.table({"n": pyarrow.array(range(57), pyarrow.int16()), "text": texts, "many": [[1, 2]] * 57})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=8)
    serve()
    summary = score(options_of(tmp_path, "in.parquet", target, part_rows=10))
    assert (summary.rows, summary.errors) == (57, 6)
    if target == "out.parquet":
        found = pyarrow.parquet.read_table(tmp_path / target)
        assert found.select(table.schema.names).equals(table)
        assert [label is None for label in found["label"].to_pylist()] == [text is None for text in texts]
    else:
        rows = read_csv(tmp_path / target)
        assert [row["n"] for row in rows] == [str(number) for number in range(57)]
        assert rows[0]["many"] == "[1, 2]"


def test_strict_stops_at_the_first_bad_row_and_names_it(serve: Serve, tmp_path: Path) -> None:
    write_csv(tmp_path / "in.csv", [[str(number), "" if number in {23, 24} else "fine"] for number in range(40)])
    serve()
    with pytest.raises(Failure, match="row 23, counted from 0: the text is empty"):
        score(options_of(tmp_path, strict=True))
    assert not (tmp_path / "out.csv").exists()
    score(options_of(tmp_path, resume=True))
    assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == [str(number) for number in range(40)]


def test_a_text_that_only_the_server_refuses_is_found_among_its_neighbours(serve: Serve, tmp_path: Path) -> None:
    def model(text: bytes) -> list[float]:
        if b"poison" in text:
            raise BadRequest("host:1: text 3 is poison")
        return logits_of(text)

    write_csv(tmp_path / "in.csv", [[str(number), "poison" if number in {3, 64, 90} else "fine"] for number in range(100)])
    serve(model=model)
    assert score(options_of(tmp_path, part_rows=100)).errors == 3
    bad = [row["id"] for row in read_csv(tmp_path / "out.csv") if row["error"] == "host:1: text 3 is poison"]
    assert bad == ["3", "64", "90"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text_column": "body"}, "--text-column: .*in.csv has no column 'body'; it has id, text, label"),
        ({"keep": ("id", "date")}, "--keep: .*in.csv has no column 'date'"),
        ({}, "has a column 'label' itself; give --prefix"),
        ({"batch": 65}, "--batch is 65; the server takes 1 to 64"),
        ({"in_flight": 0}, "--in-flight is 0; at least 1"),
        ({"retries": -1}, "--retries is -1; at least 0"),
        ({"timeout_s": 0.0}, r"--timeout-s is 0\.0; it must be above 0"),
        ({"target": "out.txt"}, r"the output is .*out.txt; its name must end in"),
        ({"target": "out.jsonl"}, r"its name must end in \.csv or \.parquet"),
        ({"target": "out.csv.gz"}, r"its name must end in \.csv or \.parquet"),
        ({"target": "in.csv"}, "in.csv exists already; name another one"),
        ({"source": "none.csv"}, "cannot read .*none.csv"),
        ({"source": "in.txt"}, "the input is .*in.txt; its name must end in"),
        ({"source": "twice.csv"}, "needs a first line of different column names"),
        ({"source": "empty.csv"}, "needs a first line of different column names"),
        ({"source": "list.jsonl"}, "needs an object in its first line"),
        ({"source": "bad.parquet"}, "bad.parquet is no Parquet file"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_sent_or_written(
    serve: Serve, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    write_csv(tmp_path / "in.csv", [["0", "a", "x"]], ("id", "text", "label"))
    write_csv(tmp_path / "twice.csv", [["0", "a"]], ("text", "text"))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "list.jsonl").write_text("[]\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really, but long enough to look")
    before = sorted(tmp_path.iterdir())
    transport = serve()
    with pytest.raises(UsageError, match=said):
        score(options_of(tmp_path, **options))
    assert transport.inner.requests == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_prefix_keeps_both_columns(serve: Serve, tmp_path: Path) -> None:
    write_csv(tmp_path / "in.csv", [["0", "a", "mine"]], ("id", "text", "label"))
    serve()
    score(options_of(tmp_path, prefix="predicted_"))
    (row,) = read_csv(tmp_path / "out.csv")
    assert (row["label"], row["predicted_label"]) == ("mine", label_of("a"))


def test_chunks_are_read_only_as_they_are_needed() -> None:
    """Files larger than memory: never more than two chunks are held."""
    taken = 0

    def chunks() -> Any:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield [Row(f"text {number}", None)] * 5

    async def main() -> None:
        finished = 0
        scorer = Scorer(AsyncClassifier(AsyncMemoryTransport()), batch=2, in_flight=2)
        async for chunk, results in in_order(chunks(), scorer, list):
            finished += 1
            assert taken <= finished + 1
            assert [row.label for row in results] == [label_of(row.text) for row in chunk if row.text]
        assert finished == 20

    asyncio.run(main())


def test_stopping_in_the_middle_leaves_no_request_behind() -> None:
    async def main() -> None:
        transport = AsyncMemoryTransport(gate=asyncio.Event())
        scorer = Scorer(AsyncClassifier(transport, in_flight=4), batch=1, in_flight=4)

        async def consume() -> None:
            async for _ in in_order([[Row("a", None)] * 8] * 3, scorer, list):
                pass

        task = asyncio.create_task(consume())
        while transport.running < 4:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.running == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_result_is_either_an_answer_or_an_error() -> None:
    assert Result(error="why") == Result(None, None, None, None, "why")

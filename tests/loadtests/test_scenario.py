"""`loadtests.scenario`: what a file may say, and what is refused with the key and the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.command import UsageError
from loadtests.scenario import Criteria, Load, Scenario, read_scenario

SCENARIOS = sorted((Path(__file__).resolve().parents[2] / "loadtests" / "scenarios").glob("*.toml"))
OPEN = 'texts = "t.jsonl"\n[load]\nkind = "open"\nrate = 5\n'


def written(folder: Path, text: str) -> Path:
    (folder / "scenario.toml").write_text(text, encoding="utf-8")
    return folder / "scenario.toml"


def test_a_file_is_read_and_the_rest_has_its_defaults(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path, "sample = 7\n" + OPEN + "[criteria]\np99_ms = 100\nerror_rate = 0.5\n"))
    expected = Scenario(
        texts=Path("t.jsonl"),
        sample=7,
        load=Load(kind="open", rate=5),
        criteria=Criteria(p99_ms=100, error_rate=0.5),
    )
    assert scenario == expected
    assert scenario.to_json()["load"]["rate"] == 5


def test_other_texts_take_the_place_of_the_files(tmp_path: Path) -> None:
    assert read_scenario(written(tmp_path, OPEN), texts=Path("mine.csv")).texts == Path("mine.csv")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
def test_the_examples_are_scenarios(path: Path) -> None:
    assert read_scenario(path).duration_s >= 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "load.kind is missing"),
        ('[load]\nkind = "open"\nrate = 5\n', "texts is missing"),
        ("[broken", "cannot read the scenario"),
        (OPEN.replace('"open"', '"half"'), "load.kind is 'half'; use open or closed"),
        (OPEN.replace("5", "0"), "an open load needs load.rate above 0 and no load.users; they are 0 and 0"),
        (OPEN.replace("5", '"5"'), "load.rate is '5'; it must be a float"),
        (OPEN + "users = 3\n", "an open load needs load.rate above 0 and no load.users; they are 5 and 3"),
        (OPEN.replace("open", "closed"), "a closed load needs load.users >= 1 and no load.rate; they are 0 and 5"),
        (OPEN + 'shape = "wave"\n', "load.shape is 'wave'; use constant, step, spike or soak"),
        (OPEN + 'arrivals = "bursts"\n', "load.arrivals is 'bursts'; use poisson or constant"),
        (OPEN + "[criteria]\np99 = 3\n", "unknown key criteria.p99; there are criteria.p99_ms"),
        (OPEN + "[criteria]\np99_ms = -1\n", "criteria.p99_ms is -1; it must be above 0"),
        (OPEN + "[criteria]\nerror_rate = 2\n", "criteria.error_rate is 2; it must be from 0 to 1"),
        ("load = 3\n" + 'texts = "t"\n', r"load must be a table, \[load\]"),
        ("rate = 3\n" + OPEN, "unknown key rate; there are texts, load"),
        ("sample = true\n" + OPEN, "sample is True; it must be a int"),
        ("texts_per_request = 65\n" + OPEN, "texts_per_request is 65; it must be from 1 to 64"),
        ("texts_per_request = 9\nsample = 8\n" + OPEN, "sample is 8; it must be at least texts_per_request, 9"),
        ("duration_s = 0.5\n" + OPEN, "duration_s is 0.5; it must be at least 1"),
        ("warmup_s = inf\n" + OPEN, "warmup_s is inf; it must be at least 0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        read_scenario(written(tmp_path, text))
    assert "scenario.toml" in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the scenario .*absent\.toml"):
        read_scenario(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("shape", "levels"),
    [
        ("constant", [(100, 1)]),
        ("step", [(25, 0.25), (25, 0.5), (25, 0.75), (25, 1)]),
        ("spike", [(40, 0.2), (20, 1), (40, 0.2)]),
    ],
)
def test_the_levels_of_a_shape(shape: str, levels: list[tuple[float, float]]) -> None:
    load = Load(kind="closed", users=8, shape=shape)  # type: ignore[arg-type]
    assert load.levels(100) == [pytest.approx(level) for level in levels]


def test_a_soak_rises_slowly_and_stays() -> None:
    levels = Load(kind="closed", users=8, shape="soak").levels(100)
    assert sum(seconds for seconds, _ in levels) == pytest.approx(100)
    assert levels[-1] == (95, 1.0)
    assert [share for _, share in levels] == sorted(share for _, share in levels)


def test_the_users_of_a_shape_second_by_second() -> None:
    load = Load(kind="closed", users=8, shape="step")
    seconds = (-5, 0, 4.9, 5, 10, 15, 19.9, 20)
    assert [load.users_at(second, 20) for second in seconds] == [2, 2, 2, 4, 6, 8, 8, None]
    assert Load(kind="closed", users=1, shape="spike").users_at(0, 20) == 1  # a fifth of one user is one

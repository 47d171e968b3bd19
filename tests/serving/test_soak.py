"""The soak, short: nothing fails, ends or piles up over 2,200 requests; and it would say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.served import deployed, serving
from tests.serving.soak import Soak, failures, growth, measure


def measured(**changes: Any) -> dict[str, Any]:
    process = {"pss_mib_first": 100.0, "pss_mib_last": 101.0, "growth_kib": 900, "replaced": 0}
    process |= {"descriptors_first": 40, "descriptors_last": 41}
    return {"requests": 10, "codes": {"OK": 9, "INVALID_ARGUMENT": 1}, "processes": {"server": process | changes}}


def test_growth_is_the_trend_and_not_the_noise() -> None:
    assert growth([100, 110, 120, 130]) == pytest.approx(30)
    assert growth([100, 140, 100, 140, 100]) == pytest.approx(0)


def test_what_grows_or_fails_is_named() -> None:
    assert failures(measured()) == []
    assert failures(measured(growth_kib=20_000)) == ["server grew by 20000 KiB from 100.0 MiB"]
    assert failures(measured(descriptors_last=60)) == ["server had 40 descriptors and has 60"]
    assert failures(measured(replaced=1)) == ["server was replaced 1 times"]
    assert failures(measured() | {"codes": {"OK": 1, "INTERNAL": 2}}) == ["2 times INTERNAL"]


@pytest.mark.server
def test_a_short_soak(tmp_path: Path, release: Path) -> None:
    with serving(deployed(tmp_path, release)) as state:
        result = measure(Soak(requests=2200), state)
    assert result["requests"] == 2200
    assert result["codes"] == {"OK": 2090, "INVALID_ARGUMENT": 110}
    assert set(result["processes"]) == {"server", "bert_tokenizer", "bert_engine"}
    assert failures(result) == []

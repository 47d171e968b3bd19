"""Thirty swaps under traffic, every second one bad: no request fails, none is mixed, every bad release is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.command import UsageError
from tests.serving.chaos_swap import ChaosSwap, run
from tests.serving.faults import FAULTS


@pytest.mark.server
@pytest.mark.timeout(900)  # half a minute on a machine of its own, minutes on a crowded one
def test_thirty_swaps_are_noticed_by_no_client(release: Path, tmp_path: Path) -> None:
    found = run(ChaosSwap(release=release, swaps=30, latency=False), tmp_path)
    assert found["wrong"] == []
    assert (found["failed"], found["mixed"]) == (0, 0)
    assert found["counts"] == {"publish": 5, "rollback": 5, "promote": 5, "refused": 15}
    assert found["requests"] > 1000
    assert found["bad_releases"] == 15 >= len(FAULTS)


def test_one_swap_is_no_chaos() -> None:
    with pytest.raises(UsageError, match="--swaps is 1"):
        ChaosSwap(swaps=1)

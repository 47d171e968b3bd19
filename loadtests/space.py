"""The settings that a search may choose from, as points on axes, and the trials that were made of them, in a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json_lines, write_bytes
from contract.tensors import BUCKET_LENGTHS
from loadtests.deployment import Setting
from loadtests.descent import Axis, Outcome, Point
from loadtests.trial import Trial

COARSE_BUCKETS = (64, 128, 256, 512)


class Space:
    """The settings of a search by their points; only releases that agree enough are in it."""

    def __init__(
        self,
        *,
        releases: Sequence[str],
        instances: Sequence[int],
        threads: Sequence[int],
        delays_us: Sequence[int],
        batches: Sequence[int],
    ) -> None:
        buckets = (BUCKET_LENGTHS, COARSE_BUCKETS)
        self._values: list[Sequence[Any]] = [releases, instances, threads, delays_us, batches, buckets]
        self.axes = [Axis(size=len(values), ordered=number > 0) for number, values in enumerate(self._values)]
        self.start: Point = (0, len(instances) - 1, len(threads) - 1, 0, 0, 0)
        """As many instances and threads as there may be, no waiting: what most likely meets the bound."""

    @property
    def size(self) -> int:
        """Different settings."""
        return len({self.setting(point) for point in itertools.product(*(range(axis.size) for axis in self.axes))})

    def setting(self, point: Point) -> Setting:
        """What a point stands for; without a wait no batch size ends it, so such points are one setting."""
        release, instances, threads, delay_us, batch, buckets = (
            values[index] for values, index in zip(self._values, point, strict=True)
        )
        return Setting(
            release=release,
            instances=instances,
            threads=threads,
            delay_us=delay_us,
            batch=batch if delay_us else 0,
            buckets=tuple(buckets),
        )


class Journal:
    """The trials in a file, a JSON line each; what is written is never changed. A setting has one look, or a second one too."""

    def __init__(self, path: Path) -> None:
        """Read the trials of earlier calls; a last line that was cut off is dropped. Raises UsageError for a broken file."""
        self._path = path
        self.first: dict[Setting, Trial] = {}
        self.second: dict[Setting, Trial] = {}
        if path.exists():
            whole = path.read_bytes()
            if not whole.endswith(b"\n"):
                write_bytes(path, whole[: whole.rfind(b"\n") + 1])
            try:
                for line in read_json_lines(path):
                    self._note(*_parse(line))
            except (KeyError, TypeError) as error:
                raise UsageError(f"{path} holds no trials of this search ({error}); name another --output") from error

    def add(self, setting: Setting, trial: Trial, *, confirms: bool = False) -> None:
        """Write a trial down; `confirms` when it is the second look at the best setting."""
        outcome = {name: _finite(value) for name, value in dataclasses.asdict(trial.outcome).items()}
        line = {"setting": dataclasses.asdict(setting), "confirms": confirms, "outcome": outcome}
        line |= {"reason": trial.reason, "result": trial.result}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._note(setting, trial, confirms)

    @property
    def trials(self) -> dict[Setting, Trial]:
        """What is known of each setting: its second look, where it had one."""
        return self.first | self.second

    def _note(self, setting: Setting, trial: Trial, confirms: bool) -> None:
        (self.second if confirms else self.first)[setting] = trial


def _finite(value: Any) -> Any:
    """None for an infinite number, which JSON has not."""
    return None if isinstance(value, float) and math.isinf(value) else value


def _parse(line: dict[str, Any]) -> tuple[Setting, Trial, bool]:
    setting = Setting(**(line["setting"] | {"buckets": tuple(line["setting"]["buckets"])}))
    figures: dict[str, Any] = {name: math.inf if value is None else value for name, value in line["outcome"].items()}
    outcome = Outcome(**figures)
    return setting, Trial(outcome=outcome, reason=line["reason"], result=line["result"]), line["confirms"]

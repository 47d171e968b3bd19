"""A load test as one file: which texts, which load, for how long, and what counts as passed. Every generator reads it.

    texts = "build/merged/heldout.jsonl"   # .jsonl with a "text" each, .csv with `column`, or .txt with one text a line
    [load]
    kind = "open"                          # open: `rate` requests/s whatever the server does; closed: `users` in a loop
    rate = 40
    [criteria]
    p99_ms = 100

Every other key has the default of its field below. `loadtests/scenarios/` holds examples; an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from contract.command import UsageError
from contract.tensors import MAX_BATCH_SIZE

ShapeName = Literal["constant", "step", "spike", "soak"]

STEPS = 4
SPIKE = (0.4, 0.2, 0.4)
"""Shares of the time before, in and after a spike; before and after it the load is a fifth of the peak."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How requests are sent."""

    kind: Literal["open", "closed"]
    """open: at times fixed beforehand, as independent callers do. closed: each user sends when it has its answer."""
    rate: float = 0.0
    """Open: requests per second."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """Open: random gaps of mean 1/rate, or equal ones."""
    users: int = 0
    """Closed: requests in flight."""
    shape: ShapeName = "constant"
    """How Locust raises the load: at once; in four steps; a spike out of a fifth; soak, a slow rise and then constant."""

    def __post_init__(self) -> None:
        if self.kind not in {"open", "closed"}:
            raise UsageError(f"load.kind is {self.kind!r}; use open or closed")
        if self.arrivals not in {"poisson", "constant"}:
            raise UsageError(f"load.arrivals is {self.arrivals!r}; use poisson or constant")
        if self.shape not in {"constant", "step", "spike", "soak"}:
            raise UsageError(f"load.shape is {self.shape!r}; use constant, step, spike or soak")
        if self.kind == "open" and not (0 < self.rate < math.inf and self.users == 0):
            raise UsageError(f"an open load needs load.rate above 0 and no load.users; they are {self.rate} and {self.users}")
        if self.kind == "closed" and not (self.users >= 1 and self.rate == 0):
            raise UsageError(f"a closed load needs load.users >= 1 and no load.rate; they are {self.users} and {self.rate}")

    def levels(self, duration_s: float) -> list[tuple[float, float]]:
        """(seconds, share of the peak) one after the other; the seconds add up to `duration_s`."""
        if self.shape == "step":
            return [(duration_s / STEPS, (step + 1) / STEPS) for step in range(STEPS)]
        if self.shape == "spike":
            return [(duration_s * part, level) for part, level in zip(SPIKE, (0.2, 1.0, 0.2), strict=True)]
        if self.shape == "soak":
            return [*((duration_s * 0.01, (step + 1) / 6) for step in range(5)), (duration_s * 0.95, 1.0)]
        return [(duration_s, 1.0)]

    def users_at(self, second: float, duration_s: float) -> int | None:
        """Closed: users at a second of the measured window, before it those of its first level; None after its end."""
        for seconds, share in self.levels(duration_s):
            if second < seconds:
                return max(1, round(share * self.users))
            second -= seconds
        return None


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What makes a run pass; a bound that is left out is not checked. Failed requests never are silent: the default is none."""

    p99_ms: float | None = None
    """Highest 99th percentile of latency, in milliseconds."""
    error_rate: float = 0.0
    """Highest share of requests that may fail, 0 to 1."""
    requests_per_s: float | None = None
    """Lowest throughput of good answers."""

    def __post_init__(self) -> None:
        for name in ("p99_ms", "requests_per_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"criteria.{name} is {value}; it must be above 0")
        if not 0 <= self.error_rate <= 1:
            raise UsageError(f"criteria.error_rate is {self.error_rate}; it must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One load test."""

    texts: Path
    """File of real texts (see `loadtests.texts`); relative to the folder the command is called in."""
    load: Load
    """How requests are sent."""
    criteria: Criteria = Criteria()
    """What makes a run pass."""
    column: str = "text"
    """Key or column of the text."""
    sample: int = 2000
    """Texts drawn from the file; they are sent again from the first when they are used up."""
    seed: int = 0
    """Of the sample and of the random arrivals."""
    texts_per_request: int = 1
    """Texts that travel in one request, 1 to 64."""
    warmup_s: float = 3.0
    """Seconds of the same load before the measured ones."""
    duration_s: float = 15.0
    """Seconds that are measured, at least 1."""
    timeout_s: float = 30.0
    """Seconds after which a request has failed."""

    def __post_init__(self) -> None:
        if not 1 <= self.texts_per_request <= MAX_BATCH_SIZE:
            raise UsageError(f"texts_per_request is {self.texts_per_request}; it must be from 1 to {MAX_BATCH_SIZE}")
        if self.sample < self.texts_per_request:
            raise UsageError(f"sample is {self.sample}; it must be at least texts_per_request, {self.texts_per_request}")
        bounds = {"warmup_s": 0.0, "duration_s": 1.0, "timeout_s": 0.001}
        for name, lowest in bounds.items():
            if not lowest <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {lowest:g}")

    def to_json(self) -> dict[str, Any]:
        """As a result file carries it."""
        return dataclasses.asdict(self) | {"texts": str(self.texts)}


def read_scenario(path: Path, *, texts: Path | None = None) -> Scenario:
    """The scenario in a TOML file, with other `texts` if given. Raises UsageError naming the file and the key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read the scenario {path}: {error}") from error
    if texts is not None:
        values["texts"] = str(texts)
    try:
        load = _fill(Load, values.pop("load", {}), "load.")
        criteria = _fill(Criteria, values.pop("criteria", {}), "criteria.")
        scenario: Scenario = _fill(Scenario, values | {"load": load, "criteria": criteria}, "")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return scenario


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float),
    "str": (str,),
    "Path": (str,),
}


def _fill(kind: Any, values: Any, prefix: str) -> Any:
    """A dataclass out of a TOML table, its keys and types checked."""
    if not isinstance(values, dict):
        raise UsageError(f"{prefix.rstrip('.')} must be a table, [{prefix.rstrip('.')}]")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(f"unknown key {prefix}{unknown[0]}; there are {', '.join(prefix + name for name in fields)}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise UsageError(f"{prefix}{missing[0]} is missing")
    for name, value in values.items():
        allowed = _TYPES.get(str(fields[name].type))
        if allowed and (isinstance(value, bool) or not isinstance(value, allowed)):
            raise UsageError(f"{prefix}{name} is {value!r}; it must be a {str(fields[name].type).removesuffix(' | None')}")
    return kind(**{name: Path(value) if fields[name].type == "Path" else value for name, value in values.items()})

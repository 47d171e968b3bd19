"""A release's own expected answers: texts, and the logits that its checkpoint gave for them when it was built.

    RELEASE/probes.json      {"texts": [...], "features": [], "logits": [[...], ...], "bound": 0.001, "agreement": 0.95}

With them whoever loads the release, on any machine, can tell an engine that answers from one that answers rightly, whatever
another release says. `builders` write the file, `serving` replays it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json, write_json

PROBES_FILE = "probes.json"


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Texts with the logits of the checkpoint."""

    texts: list[str]
    """At least one, at most `MAX_BATCH_SIZE`."""
    logits: list[list[float]]
    """One row a text, in the order of the labels."""
    bound: float
    """Largest difference of a logit that this release's engine may show; low precision has a wide one."""
    agreement: float
    """Smallest share of texts whose label must be the checkpoint's."""
    features: list[list[float]] = dataclasses.field(default_factory=list)
    """Numbers beside each text; empty where the release reads text alone."""

    def rows(self) -> list[dict[str, Any]]:
        """{"text"} of each, and "features" where the release reads them."""
        if not self.features:
            return [{"text": text} for text in self.texts]
        return [{"text": text, "features": row} for text, row in zip(self.texts, self.features, strict=True)]

    def write(self, folder: Path) -> None:
        """Write `folder`/probes.json."""
        write_json(folder / PROBES_FILE, dataclasses.asdict(self))

    def failures(self, logits: Sequence[Sequence[float]]) -> list[str]:
        """What is wrong with these answers to the texts; empty when nothing is. NaN exceeds every bound."""
        if [len(row) for row in logits] != [len(row) for row in self.logits]:
            shapes = [f"{len(rows)} rows of {sorted({len(row) for row in rows})}" for rows in (logits, self.logits)]
            return [f"answered with {shapes[0]} logits, expected {shapes[1]}"]
        found = []
        pairs = list(zip(logits, self.logits, strict=True))
        off = [max(math.inf if math.isnan(a) else abs(a - b) for a, b in zip(*pair, strict=True)) for pair in pairs]
        worst = max(range(len(off)), key=off.__getitem__)
        if not off[worst] <= self.bound:
            found.append(
                f"logits are off by up to {off[worst]:.3g}, allowed {self.bound:.3g}; first at {self.texts[worst]!r:.60}"
            )
        agreed = sum(best_of(a) == best_of(b) for a, b in pairs) / len(pairs)
        if agreed < self.agreement:
            found.append(f"{agreed:.1%} of the labels are the checkpoint's, wanted {self.agreement:.1%}")
        return found


def best_of(row: Sequence[float]) -> int:
    """Index of the largest value."""
    return max(range(len(row)), key=row.__getitem__)


def read_probes(folder: Path) -> Probes:
    """The probes of a release or of a published version. Raises `UsageError` when there are none, or not as `Probes` are."""
    path = folder / PROBES_FILE
    value = read_json(path)
    fields = {field.name for field in dataclasses.fields(Probes)}
    value = {"features": []} | value if isinstance(value, dict) else value  # older ones have no such key
    if not isinstance(value, dict) or set(value) != fields or not value["texts"] or len(value["texts"]) != len(value["logits"]):
        raise UsageError(f"{path} does not hold probe texts and a row of logits for each; build the release again")
    return Probes(**value)

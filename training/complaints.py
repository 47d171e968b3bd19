"""Consumer complaints of the CFPB's database: product and narrative, cleaned as in the published system.

The steps and their order are those of msmrexe/pytorch-lora-from-scratch, scripts/preprocess.py: rows without a product or
narrative dropped, a random share drawn, product names merged, rare products dropped, texts cleaned, short ones dropped.
Case stays. `python -m training.preprocess` writes the result to files.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from contract.command import UsageError
from training.readers import Table, read_columns

PRODUCT = "Product"
NARRATIVE = "Consumer complaint narrative"

# The CFPB renamed its products in April 2017 and in August 2023, so one file holds up to three names of a product. The 13
# names that the published system merges, under the 6 labels that it gives them; the other products keep their names, which
# gives 9 labels of 1,000 complaints or more on its data. "Consumer Loan" has no heir: it was split into vehicle and personal
# loans, so it keeps its name too.
MERGED: dict[str, tuple[str, ...]] = {
    "Credit reporting": (
        "Credit reporting",
        "Credit reporting, credit repair services, or other personal consumer reports",
        "Credit reporting or other personal consumer reports",
    ),
    "Payday or personal loan": (
        "Payday loan",
        "Payday loan, title loan, or personal loan",
        "Payday loan, title loan, personal loan, or advance loan",
    ),
    "Money transfer or virtual currency": (
        "Money transfers",
        "Virtual currency",
        "Money transfer, virtual currency, or money service",
    ),
    "Checking or savings account": ("Bank account or service",),
    "Debt collection": ("Debt or credit management",),
    "Credit card or prepaid card": ("Credit card", "Prepaid card"),
}
_LABEL_OF = {name: label for label, names in MERGED.items() for name in names}
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")  # a bare "<", as in "balance < limit", begins no tag
_OTHER = re.compile(r"[^A-Za-z0-9\s]")


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """Which complaints are kept. The published values are a tenth, 1,000 and 10."""

    sample_frac: float = 1.0
    """Share of the complaints to draw at random, in (0, 1]."""
    class_threshold: int = 30
    """Complaints that a product must have, after drawing and merging, to be a class."""
    min_text_length: int = 10
    """Words that a cleaned complaint must have."""

    def __post_init__(self) -> None:
        if not 0 < self.sample_frac <= 1:
            raise UsageError(f"--sample-frac is {self.sample_frac}; it must be in (0, 1]")
        for name, number in {"class-threshold": self.class_threshold, "min-text-length": self.min_text_length}.items():
            if number < 1:
                raise UsageError(f"--{name} is {number}; it must be at least 1")


def clean(text: str) -> str:
    """`text` without HTML tags and without all but letters, digits and single blanks; don't becomes dont."""
    return " ".join(_OTHER.sub("", _TAG.sub("", text)).split())


def merge_product(name: str) -> str:
    """The label of a product name: its own, unless it is one of the merged ones."""
    return _LABEL_OF.get(name, name)


def read_complaints(path: Path, cleaning: Cleaning, *, seed: int) -> Table:
    """Cleaned narratives by merged product; prints what was dropped and why.

    Raises:
        UsageError: a missing column or broken file, or no product has enough complaints.
    """
    rows, empty = [], 0
    for product, narrative in read_columns(path, [PRODUCT, NARRATIVE]):
        if product.strip() and narrative.strip():
            rows.append((merge_product(product.strip()), narrative))
        else:
            empty += 1
    print(f"{path}: {empty + len(rows):,} complaints; dropped {empty:,} without a product or a narrative")
    if cleaning.sample_frac < 1:
        wanted = round(len(rows) * cleaning.sample_frac)
        print(f"dropped {len(rows) - wanted:,} at random; {cleaning.sample_frac:g} of them are wanted")
        rows = random.Random(seed).sample(rows, wanted)
    return _clean_long_enough(_of_large_classes(rows, cleaning.class_threshold), cleaning.min_text_length)


def _of_large_classes(rows: list[tuple[str, str]], threshold: int) -> list[tuple[str, str]]:
    counts = Counter(product for product, _ in rows)
    kept = {product for product, count in counts.items() if count >= threshold}
    if not kept:
        most = max(counts.values(), default=0)
        raise UsageError(f"--class-threshold is {threshold}, but no product has more than {most} complaints; lower it")
    for product in sorted(set(counts) - kept):
        print(f"dropped {counts[product]:,} of {product!r}, which has fewer than {threshold:,}")
    return [row for row in rows if row[0] in kept]


def _clean_long_enough(rows: Iterable[tuple[str, str]], words: int) -> Table:
    texts, labels, short = [], [], 0
    for product, narrative in tqdm(rows, desc="cleaning", unit="texts", mininterval=0.5, delay=1):
        text = clean(narrative)
        if len(text.split()) < words:
            short += 1
        else:
            texts.append(text)
            labels.append(product)
    print(f"dropped {short:,} of fewer than {words} words; kept {len(texts):,} complaints about {len(set(labels))} products")
    return Table(texts, labels)

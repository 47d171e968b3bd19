"""Clean consumer complaints as the published system did, and write its training and test files.

    python -m training.preprocess --data complaints.csv --output build/complaints

OUTPUT gets train.csv, test.csv (columns Product, Product_encoded, Processed_complaint) and label_map.json. The split is
stratified and disjoint by text. Train on it with `python -m training.finetune --dataset csv --data build/complaints/train.csv
--text Processed_complaint --label Product`; for the raw file, `--dataset complaints` cleans in passing.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import tyro

from contract.command import UsageError, run_command
from contract.files import new_folder, write_bytes, write_json
from training.complaints import PRODUCT, Cleaning
from training.datasets import Dataset, read_dataset
from training.split import deal_rows

COLUMNS = (PRODUCT, f"{PRODUCT}_encoded", "Processed_complaint")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Clean consumer complaints and write train.csv, test.csv and label_map.json."""

    data: Path
    """CSV of the CFPB's complaints, plain or .gz, with the columns Product and Consumer complaint narrative."""
    output: Path
    """Folder to write; it must not exist."""
    sample_frac: float = 0.1
    """Share of the complaints to draw at random, in (0, 1]."""
    class_threshold: int = 1000
    """Complaints that a product must have, after drawing and merging, to be a class."""
    min_text_length: int = 10
    """Words that a cleaned complaint must have."""
    test_size: float = 0.2
    """Share of the complaints in test.csv, in (0, 1)."""
    random_state: int = 42
    """Seed of the drawing and of the split."""

    def __post_init__(self) -> None:
        _ = self.cleaning
        if not 0 < self.test_size < 1:
            raise UsageError(f"--test-size is {self.test_size}; it must be in (0, 1)")

    @property
    def cleaning(self) -> Cleaning:
        """The part of the options that `training.complaints` checks and follows."""
        return Cleaning(
            sample_frac=self.sample_frac, class_threshold=self.class_threshold, min_text_length=self.min_text_length
        )


def preprocess(options: Preprocess) -> None:
    """Read, clean, split and write; prints what was dropped, and the rows of each product."""
    with new_folder(options.output) as folder:
        dataset = read_dataset(
            "complaints",
            data=options.data,
            text=None,
            label=None,
            drop_empty=False,
            seed=options.random_state,
            cleaning=options.cleaning,
        )
        train, test = deal_rows(dataset, [options.test_size], seed=options.random_state)
        write_json(folder / "label_map.json", {name: number for number, name in enumerate(dataset.names)})
        write_bytes(folder / "train.csv", _as_csv(dataset, train))
        write_bytes(folder / "test.csv", _as_csv(dataset, sorted(test)))
    for number, name in enumerate(dataset.names):
        counts = [sum(dataset.labels[row] == number for row in rows) for rows in (train, test)]
        print(f"{number} {name}: {counts[0]:,} to train on, {counts[1]:,} to test on")
    print(f"wrote {options.output}: {len(train):,} rows in train.csv, {len(test):,} in test.csv")


def _as_csv(dataset: Dataset, rows: list[int]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((dataset.names[dataset.labels[row]], dataset.labels[row], dataset.texts[row]) for row in rows)
    return file.getvalue().encode()


if __name__ == "__main__":
    run_command(lambda: preprocess(tyro.cli(Preprocess, prog="python -m training.preprocess", description=__doc__)))

"""The texts that are sent: a seeded sample of a JSON-lines file, with the lengths that the file really has."""

from __future__ import annotations

import random
from pathlib import Path

from contract.command import UsageError
from contract.files import read_json_lines


def read_texts(path: Path, *, limit: int | None = None, seed: int = 0) -> list[str]:
    """Up to `limit` texts of `path` (a "text" on each line), in an order drawn from `seed`.

    Raises:
        UsageError: the file is missing or broken, or holds no texts.
    """
    rows = list(read_json_lines(path))
    texts = [row["text"] for row in rows if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"].strip()]
    if not texts:
        raise UsageError(f'{path} holds no texts; each line must be a JSON object with a non-empty "text"')
    random.Random(seed).shuffle(texts)
    return texts[:limit]

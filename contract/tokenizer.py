"""What a tokenizer promises: `contract.json` beside `tokenizer.json`, as `builders.tokenizer_contract` writes it.

    {"schema": 1,
     "parts": {"model": sha256, "normalizer": sha256, ...},        of the parts of tokenizer.json, as canonical JSON
     "pad_id": ...,
     "golden": [{"name": ..., "text": ..., "times": ..., "sha256": ..., "first_ids": [...], "tokens": ...}, ...],
     "refused": [text, ...]}                                       texts that are no texts

A golden text is `text` repeated `times` times; `sha256` is that of its ids, then the padding id, as `ids_digest` has it.
`bert_tokenizer` checks all of it when it is loaded, clients can check the golden texts of a running one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

CONTRACT_FILE = "contract.json"
CONTRACT_SCHEMA = 1


def ids_digest(ids: Sequence[int], pad_id: int) -> str:
    """Hex sha256 of the ids of a text followed by the padding id, each four bytes, little-endian."""
    return hashlib.sha256(struct.pack(f"<{len(ids) + 1}i", *ids, pad_id)).hexdigest()

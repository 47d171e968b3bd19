"""What the served tokenizer has to be: hashes of its parts and golden texts with the ids that training saw.

Written into every release (`contract.json` beside `tokenizer.json`; its form is `contract.tokenizer`) and checked when the
model is loaded: a lower-casing or a padding id that changed on the way is refused, with the first text that differs.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tokenizers import Tokenizer

from contract.tokenizer import CONTRACT_SCHEMA, ids_digest

PAD_TOKEN = "[PAD]"  # noqa: S105 - no password
PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "truncation")
FIRST_IDS = 16

GOLDEN = {
    "plain words": ("The quick brown fox jumps over the lazy dog.", 1),
    "mixed case": ("iPhone, McDonald, USA and usa: MiXeD CaSe", 1),
    "accents": ("Éléphant naïve, façade, Zürich, smörgåsbord", 1),
    "combining marks": ("e\u0301le\u0301phant n\u0303 a\u030a", 1),
    "emoji": ("well done \U0001f600\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f52c", 1),
    "CJK": ("猫は木の上で寝ている。 中文 한국어", 1),
    "right to left": ("قطة نائمة, חתול ישן", 1),
    "NUL and control characters": ("a\0b \x07\x1b[0m\ufffd end", 1),
    "odd spaces": ("a\u00a0b\u2003c\u200bd\r\n\te", 1),
    "special tokens as text": ("[CLS] a [SEP] b [PAD] [MASK] [UNK]", 1),
    "numbers and symbols": ("3.14 + 2*x == 1e-9; $5, 50 %, C++ and C#", 1),
    "one letter": ("x", 1),
    "one long word": ("x", 5_000),
    "100,000 characters": ("word ", 20_000),
}
"""Name -> (text, how often it is repeated)."""

REFUSED = ("", " ", " \t\r\n", "\u00a0\u2003")


def make_contract(tokenizer_json: bytes) -> dict[str, Any]:
    """The contract of a tokenizer.json, which holds for that very file.

    Raises:
        ValueError: `tokenizer_json` is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"this is no tokenizer.json: {error}") from error
    pad_id = tokenizer.token_to_id(PAD_TOKEN) or 0
    golden = []
    for name, (text, times) in GOLDEN.items():
        ids = tokenizer.encode(text * times).ids
        digest = ids_digest(ids, pad_id)
        golden.append(
            {"name": name, "text": text, "times": times, "sha256": digest, "first_ids": ids[:FIRST_IDS], "tokens": len(ids)}
        )
    parts = json.loads(tokenizer_json)
    return {
        "schema": CONTRACT_SCHEMA,
        "pad_id": pad_id,
        "parts": {name: _digest(parts.get(name)) for name in PARTS},
        "golden": golden,
        "refused": list(REFUSED),
    }


def _digest(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()

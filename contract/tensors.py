"""The names, types and limits that client, tokenizer, engine and server share.

`bert_classifier` is an ensemble and all that a client knows: `TEXT` goes to `bert_tokenizer`, whose token ids go
to `bert_engine`, whose logits come back. Roles, not mechanisms, are in the names: an engine can change from
ONNX Runtime to TensorRT without a client noticing.
"""

from __future__ import annotations

TOKENIZER = "bert_tokenizer"
ENGINE = "bert_engine"
CLASSIFIER = "bert_classifier"
CANDIDATE = "bert_candidate"  # a second ensemble of the same shape, which a canary's share of the requests goes to
STEPS = (TOKENIZER, ENGINE)
ENSEMBLES = (CLASSIFIER, CANDIDATE)

TEXT = "TEXT"  # BYTES [B, 1], UTF-8
INPUT_IDS = "input_ids"  # INT32 [B, T]
ATTENTION_MASK = "attention_mask"  # INT32 [B, T], 1 for a token, 0 for padding
FEATURES = "features"  # FP32 [B, F], raw, of releases that read numbers beside the text (`contract.features`)
ENGINE_INPUTS = (INPUT_IDS, ATTENTION_MASK, FEATURES)
LOGITS = "logits"  # FP32 [B, C]
TRUNCATED = "truncated"  # BOOL [B, 1], True where the text was longer than the model reads
RELEASE = "release"  # BYTES [B, 1], the id of the release that answered

MAX_BATCH_SIZE = 64
"""Texts in one request. A client with more texts sends several requests."""

MAX_TEXT_BYTES = 131_072
"""Bytes of UTF-8 in one text. BERT reads at most a few thousand characters; tokenizing more only costs time."""

MAX_QUEUE_SIZE = 512
"""Requests waiting at the TensorRT engine; one more is answered at once with UNAVAILABLE, "Exceeds maximum queue size"."""

MAX_WAIT_MS = 1000
"""Milliseconds that a request may have to wait for the CPU engine; one that would wait longer is answered at once with
UNAVAILABLE, "overloaded". Under it the engine always has full batches; over it answers only get later."""

BUCKET_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512)
"""Token counts a request is padded to, so that requests of one bucket can share a batch."""

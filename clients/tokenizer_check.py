"""Ask a running server's tokenizer for the token ids of a release's golden texts, and compare.

    python -m clients.tokenizer_check build/release --url 127.0.0.1:8001

`bert_tokenizer` checks the same texts as it is loaded; this looks from outside, through its decoding of texts, its batching and
padding, and the network. Every golden text must come back with the ids that training saw, every text that is none
must be refused; otherwise the exit code is 1, and the first text that differs is named. Without --version the server chooses
one; name it while several are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tritonclient.grpc
import tyro

from clients.errors import BadRequest, ClassifierError, ServerError, describe
from clients.wire import DEFAULT_TIMEOUT_S, translated
from contract.command import Failure, UsageError, run_command
from contract.files import read_json
from contract.release import RELEASE_FILE
from contract.tensors import ATTENTION_MASK, FEATURES, INPUT_IDS, RELEASE, TEXT, TOKENIZER
from contract.tokenizer import CONTRACT_FILE, CONTRACT_SCHEMA, ids_digest

Tokenize = Callable[[bytes], tuple[list[int], str]]
"""One text to its ids, padding left out, and the id of the release that answered."""


@dataclass(frozen=True, kw_only=True)
class TokenizerCheck:
    """Compare a running tokenizer with a release's contract."""

    release: Annotated[Path, tyro.conf.Positional]
    """Release folder, as `python -m builders.build` writes it."""
    url: str = "127.0.0.1:8001"
    """host:port of the server's gRPC service."""
    version: str = ""
    """Version of bert_tokenizer to ask; the server's choice when left out."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Deadline of one request, in seconds."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UsageError(f"--timeout-s is {self.timeout_s}; it must be above 0")


def check_tokenizer(options: TokenizerCheck) -> int:
    """Run the command; the number of golden texts that agree. Raises Failure for the first that does not."""
    folder = options.release / TOKENIZER
    contract, facts = read_json(folder / CONTRACT_FILE), read_json(folder / RELEASE_FILE)
    features = len(facts.get("features", []))
    if contract.get("schema") != CONTRACT_SCHEMA:
        raise UsageError(f"{folder / CONTRACT_FILE} has schema {contract.get('schema')}; this version reads {CONTRACT_SCHEMA}")
    with translated(options.url, options.timeout_s):
        client = tritonclient.grpc.InferenceServerClient(options.url)
    try:
        compare(contract, facts["release"], lambda text: _tokenize(client, options, text, features))
    except ClassifierError as error:
        raise Failure(describe(error)) from error
    finally:
        client.close()
        client.close = lambda: None  # once only, as clients.transport says
    return len(contract["golden"])


def compare(contract: dict[str, Any], release: str, tokenize: Tokenize) -> None:
    """Raise Failure for the first golden text with other ids, or the first text that should have been refused."""
    for golden in contract["golden"]:
        name, text = golden["name"], golden["text"] * golden["times"]
        ids, answered = tokenize(text.encode())
        if answered != release:
            raise Failure(f"release {answered} answers, the contract is that of {release}; name its version with --version")
        if ids_digest(ids, contract["pad_id"]) != golden["sha256"]:
            raise Failure(
                f"{name}: {golden['text']!r} x {golden['times']} gives {len(ids)} tokens, {ids[: len(golden['first_ids'])]}; "
                f"the release was built with {golden['tokens']}, {golden['first_ids']}"
            )
    for text in contract["refused"]:
        try:
            tokenize(text.encode())
        except BadRequest:
            continue
        raise Failure(f"{text!r} is no text, and the tokenizer takes it")


def _tokenize(client: Any, options: TokenizerCheck, text: bytes, features: int) -> tuple[list[int], str]:
    tensors = [tritonclient.grpc.InferInput(TEXT, [1, 1], "BYTES").set_data_from_numpy(np.array([[text]], dtype=object))]
    if features:
        zeros = np.zeros((1, features), np.float32)
        tensors.append(tritonclient.grpc.InferInput(FEATURES, [1, features], "FP32").set_data_from_numpy(zeros))
    with translated(options.url, options.timeout_s):
        result = client.infer(TOKENIZER, tensors, model_version=options.version, client_timeout=options.timeout_s)
    ids, mask, release = (result.as_numpy(name) for name in (INPUT_IDS, ATTENTION_MASK, RELEASE))
    if ids is None or mask is None or release is None or ids.shape != mask.shape:
        raise ServerError(f"{options.url}: {TOKENIZER} answers without {INPUT_IDS}, {ATTENTION_MASK} and {RELEASE}")
    return ids[mask == 1].tolist(), release[0, 0].decode()


if __name__ == "__main__":
    run_command(
        lambda: print(
            check_tokenizer(tyro.cli(TokenizerCheck, prog="python -m clients.tokenizer_check", description=__doc__)),
            "golden texts agree",
        )
    )

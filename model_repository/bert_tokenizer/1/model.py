"""Triton python model: texts -> padded token ids, with a flag for texts that were cut and the release that answers.

Needs tokenizers and numpy only. Every request is answered on its own: a bad text fails its request, never its neighbours.
A request whose turn at the engine would come too late is refused at once, before any work is put into it.

Shapes: B texts of a request, T tokens, padded to a bucket length, F features, numbers beside the text.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from tokenizers import Encoding, Tokenizer

COUNTERS = {
    "bert_texts_total": "Texts tokenized",
    "bert_tokens_total": "Tokens of these texts, without padding",
    "bert_truncated_total": "Texts that were longer than the model reads",
    "bert_tokenizer_seconds_total": "Seconds spent on tokenizing",
    "bert_refused_total": "Requests refused, by reason",
}
REPORT_S = 0.5  # between two reports of the counts: each costs a message to the server


class Backlog:
    """How long the engine of this version will need for what it owes, by the progress that it writes down itself.

    `progress` is shared with the engine: when it started, its tokens and seconds so far, when its last call ended (infinity
    during a call). Without an engine that writes, as with TensorRT, it stays zero and so does the wait.
    """

    FULL_TOKENS = 1024  # the engine's speed counts when so much waits: with less it computes small, slow batches
    WINDOW_S = 0.1  # of the engine's time, over which its speed is taken
    IDLE_S = 0.1  # an engine without a call for so long owes nothing, whatever was lost on the way to it

    def __init__(self, progress: npt.NDArray[np.float64]) -> None:
        self.progress = progress
        self.started, self.sent, self.sent_at = -1.0, 0.0, 0.0
        self.window: tuple[float, float] | None = None  # (tokens, seconds) when so much began to wait
        self.seconds_per_token = 0.0

    def add(self, tokens: int, now: float) -> None:
        """Note tokens that go to the engine."""
        self.sent, self.sent_at = self.sent + tokens, now

    def wait_s(self, now: float) -> float:
        """Seconds until the engine would start on what comes now; 0 as long as its speed under load is unknown."""
        started, done, seconds, idle_since = self.progress.tolist()
        if started != self.started or self.sent < done or now - max(idle_since, self.sent_at) > self.IDLE_S:
            self.started, self.sent = started, done
        owed = self.sent - done
        if owed <= self.FULL_TOKENS:
            self.window = None
            return 0.0
        self.window = self.window or (done, seconds)
        tokens, busy_s = done - self.window[0], seconds - self.window[1]
        if tokens > 0 and busy_s > self.WINDOW_S:
            self.window, self.seconds_per_token = (done, seconds), busy_s / tokens
        return float(owed * self.seconds_per_token)


class Counts:
    """Prometheus counters of this version, reported now and then."""

    def __init__(self, labels: dict[str, str]) -> None:
        counter = pb_utils.MetricFamily.COUNTER
        self.families = {name: pb_utils.MetricFamily(name=name, description=COUNTERS[name], kind=counter) for name in COUNTERS}
        self.labels, self.reported_at = labels, 0.0
        self.metrics: dict[tuple[str, str], pb_utils.Metric] = {}
        self.pending: dict[tuple[str, str], float] = {}

    def add(self, name: str, value: float, reason: str = "") -> None:
        """Add to a counter; `reason` is a label of its own."""
        self.pending[name, reason] = self.pending.get((name, reason), 0) + value

    def report(self, now: float) -> None:
        """Tell the server, unless that was done a moment ago."""
        if now - self.reported_at < REPORT_S:
            return
        for (name, reason), value in self.pending.items():
            if (name, reason) not in self.metrics:
                labels = {**self.labels, "reason": reason} if reason else self.labels
                self.metrics[name, reason] = self.families[name].Metric(labels=labels)
            self.metrics[name, reason].increment(value)
        self.pending, self.reported_at = {}, now


def open_progress(version: str) -> npt.NDArray[np.float64]:
    """The four numbers that tokenizer and engine of one version share; memory of its own where no server names a place."""
    prefix = os.environ.get("BERT_SHM_PREFIX")
    if not prefix:
        return np.zeros(4)
    path = Path("/dev/shm") / f"{prefix}progress_{version}"  # noqa: S108 - POSIX shared memory, removed with the server
    with path.open("ab") as file:
        file.truncate(32)
    return np.asarray(np.memmap(path, np.float64, "r+", shape=4))


def check_contract(tokenizer: Tokenizer, pad_id: int, parts: dict[str, Any], contract: dict[str, Any]) -> None:
    """Raise ValueError with the first golden text whose ids are not those of the build, or with the part that changed."""
    for golden in contract["golden"]:
        ids = tokenizer.encode(golden["text"] * golden["times"]).ids
        if hashlib.sha256(np.array([*ids, pad_id], "<i4").tobytes()).hexdigest() != golden["sha256"]:
            raise ValueError(
                f"tokenizer.json is not what the release was built with: {golden['text']!r} x {golden['times']} gives "
                f"{len(ids)} tokens, {ids[:16]}, padding {pad_id}; it gave {golden['tokens']}, {golden['first_ids']}, "
                f"padding {contract['pad_id']}. Build the release again"
            )
    for name, digest in contract["parts"].items():
        if hashlib.sha256(json.dumps(parts.get(name), sort_keys=True).encode()).hexdigest() != digest:
            raise ValueError(f"the part {name!r} of tokenizer.json was changed after the release was built; build it again")


def decode_texts(raw: npt.NDArray[np.object_], max_bytes: int) -> list[str]:
    """[B, 1] of bytes -> B strings. Raises ValueError naming the first text that cannot be classified."""
    texts = []
    for number, value in enumerate(raw.ravel()):
        if len(value) > max_bytes:
            raise ValueError(f"text {number} has {len(value)} bytes; at most {max_bytes} are allowed: shorten it")
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"text {number} is not valid UTF-8: {error}") from error
        if not text.strip():
            raise ValueError(f"text {number} is empty: there is nothing to classify")
        texts.append(text)
    return texts


def check_features(given: npt.NDArray[np.float32] | None, names: list[str]) -> None:
    """Raise ValueError unless [B, F] holds a finite number of every name. Clients read the names out of the message."""
    wanted = f"this release reads the features {json.dumps(names)}, FP32 [texts, {len(names)}] in this order"
    if given is None:
        raise ValueError(f"the texts come without numbers; {wanted}")
    if given.shape[1] != len(names):
        raise ValueError(f"{given.shape[1]} number(s) come with each text; {wanted}")
    for text, feature in np.argwhere(~np.isfinite(given)):
        raise ValueError(f"text {text}: the feature {names[feature]} is {given[text, feature]}; a finite number is needed")


def padded_length(longest: int, buckets: list[int], max_length: int) -> int:
    """The smallest bucket that holds `longest` tokens; never beyond what the model reads."""
    return min(next((bucket for bucket in buckets if bucket >= longest), longest), max_length)


def to_arrays(
    encodings: list[Encoding], length: int, pad_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """(input_ids [B, T], attention_mask [B, T], truncated [B, 1]) of one request, padded on the right to `length`.

    `ids` and `overflowing` are asked once a text: each time they are copied out of the tokenizer, as lists.
    """
    ids = np.full((len(encodings), length), pad_id, dtype=np.int32)
    mask = np.zeros((len(encodings), length), dtype=np.int32)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding)] = encoding.ids
        mask[row, : len(encoding)] = 1
    truncated = np.array([[bool(encoding.overflowing)] for encoding in encodings], dtype=np.bool_)
    return ids, mask, truncated


class TritonPythonModel:
    """What Triton's stub loads; see the module docstring."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer and the release id of this version, and check that they are those of the build."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(
                f"numpy {np.__version__}: the stub of Triton 2.51 corrupts tensors with numpy 2; install numpy<2"
            )
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a thread pool for a 60 us task costs the engine its cores
        folder, version = Path(args["model_repository"]) / args["model_version"], args["model_version"]
        parameters: dict[str, Any] = json.loads(args["model_config"])["parameters"]
        self.buckets = [int(length) for length in parameters["bucket_lengths"]["string_value"].split(",")]
        self.max_bytes = int(parameters["max_text_bytes"]["string_value"])
        self.max_wait_s = int(parameters["max_wait_ms"]["string_value"]) / 1000
        saved = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.tokenizer = Tokenizer.from_str(saved)
        if self.tokenizer.truncation is None:
            raise ValueError(f"{folder / 'tokenizer.json'} sets no truncation, so it is not the one that training wrote")
        self.max_length = int(self.tokenizer.truncation["max_length"])
        self.pad_id = self.tokenizer.token_to_id("[PAD]") or 0  # masked out, so any id that exists will do
        contract = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
        check_contract(self.tokenizer, self.pad_id, json.loads(saved), contract)
        facts = json.loads((folder / "release.json").read_text(encoding="utf-8"))
        release, self.features = facts["release"], facts.get("features", [])
        self.release = release.encode()
        self.backlog = Backlog(open_progress(version))
        self.counts = Counts({"version": version})
        self.info = pb_utils.MetricFamily(
            name="bert_release_info", description="1 for each release that is loaded", kind=pb_utils.MetricFamily.GAUGE
        )
        self.served = self.info.Metric(labels={"release": release, "version": version})
        self.served.set(1)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Tokenize the texts of all requests in one call; one response a request, in order."""
        began = time.monotonic()
        wait_s = self.backlog.wait_s(began)
        accepted = [self.accept(request, wait_s) for request in requests]
        texts = [text for answer in accepted if isinstance(answer, list) for text in answer]
        encodings = self.tokenizer.encode_batch_fast(texts)
        tokens = sum(map(len, encodings))
        remaining = iter(encodings)
        responses = [
            self.respond(request, [next(remaining) for _ in answer])
            if isinstance(answer, list)
            else pb_utils.InferenceResponse(error=answer)
            for request, answer in zip(requests, accepted, strict=True)
        ]
        ended = time.monotonic()
        self.backlog.add(tokens, ended)
        self.counts.add("bert_texts_total", len(texts))
        self.counts.add("bert_tokens_total", tokens)
        self.counts.add("bert_tokenizer_seconds_total", ended - began)
        self.counts.report(ended)
        return responses

    def accept(self, request: pb_utils.InferenceRequest, wait_s: float) -> list[str] | pb_utils.TritonError:
        """The texts of a request, or why it is refused."""
        if wait_s > self.max_wait_s:
            self.counts.add("bert_refused_total", 1, "overloaded")
            said = f"overloaded: the engine is {1000 * wait_s:.0f} ms behind, {1000 * self.max_wait_s:.0f} ms are allowed"
            return pb_utils.TritonError(f"{said}; try again later", pb_utils.TritonError.UNAVAILABLE)
        try:
            texts = decode_texts(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy(), self.max_bytes)
            if self.features:
                tensor = pb_utils.get_input_tensor_by_name(request, "features")
                check_features(None if tensor is None else tensor.as_numpy(), self.features)
            return texts
        except ValueError as error:
            self.counts.add("bert_refused_total", 1, "invalid")
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)

    def respond(self, request: pb_utils.InferenceRequest, encodings: list[Encoding]) -> pb_utils.InferenceResponse:
        """The response to one request; its features go on to the engine."""
        length = padded_length(max(map(len, encodings)), self.buckets, self.max_length)
        ids, mask, truncated = to_arrays(encodings, length, self.pad_id)
        self.counts.add("bert_truncated_total", int(truncated.sum()))
        release = np.full((len(encodings), 1), self.release, dtype=object)
        tensors: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "truncated": truncated, "release": release}
        if self.features:
            tensors["features"] = pb_utils.get_input_tensor_by_name(request, "features").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])

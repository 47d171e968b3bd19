"""Triton python model: texts -> padded token ids, with a flag for texts that were cut and the release that answers.

Needs tokenizers and numpy only. Every request is answered on its own: a bad text fails its request, never its neighbours.
A request whose turn at the engine would come too late is refused at once, before any work is put into it.

Shapes: B texts of a request, T tokens, padded to a bucket length, F features, numbers beside the text.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

COUNTERS = {
    "bert_texts_total": "Texts tokenized",
    "bert_tokens_total": "Tokens of these texts, without padding",
    "bert_truncated_total": "Texts that were longer than the model reads",
    "bert_tokenizer_seconds_total": "Seconds spent on tokenizing",
    "bert_refused_total": "Requests refused, by reason",
}
HEAD_CHARACTERS = 6  # of a long text for each token that the model reads: English has 4, with its space
WORDS_KEPT = 32768  # whose pieces are remembered, some 8 MB: of Stack Overflow's words all but one in 40
REPORT_S = 0.5  # between two reports of the counts: each costs a message to the server
LOADING_FACTOR = 2.0  # while an engine loads requests may wait so much longer: late answers to all, not refusals to some
GATHER_S = 0.02  # that refusals wait for each other: each by itself wakes server and stub, on cores that the engine needs


class Backlog:
    """How long the engine of this version will need for what it owes, by the progress that it writes down itself.

    `progress` is shared by all instances of engine and tokenizer, row by number. An engine's: when it started, its tokens and
    seconds so far, when its last call ended (infinity during a call). A tokenizer's: the tokens that it sent, and when last.
    Without an engine that writes, as with TensorRT, there is no wait.
    """

    FULL_TOKENS = 1024  # the engine's speed counts when so much waits: with less it computes small, slow batches
    WINDOW_S = 0.1  # of the engine's time, over which its speed is taken
    WEIGHT = 0.3  # of a window beside those before it: one slow call is no slow engine
    IDLE_S = 0.1  # an engine without a call for so long owes nothing, whatever was lost on the way to it

    def __init__(self, progress: npt.NDArray[np.float64], number: int = 0) -> None:
        self.progress, self.number = progress, number
        self.progress[number, 4:] = 0.0
        self.started, self.lost, self.owed = -1.0, 0.0, 0.0
        self.window: tuple[float, float] | None = None  # (tokens, seconds) when so much began to wait
        self.seconds_per_token = 0.0

    def add(self, tokens: int, now: float) -> None:
        """Note tokens that go to the engine."""
        self.progress[self.number, 4:] = self.progress[self.number, 4] + tokens, now

    def wait_s(self, now: float) -> float:
        """Seconds until the engine would start on what comes now; 0 as long as its speed under load is unknown."""
        engines = self.progress[self.progress[:, 0] > 0]  # when much is waiting, all of them compute at once
        started, done, seconds = engines[:, :3].sum(axis=0).tolist()
        seconds, sent = seconds / max(len(engines), 1), float(self.progress[:, 4].sum())
        idle_since = max(engines[:, 3].max(initial=0.0), self.progress[:, 5].max())
        if started != self.started or sent - done < self.lost or now - idle_since > self.IDLE_S:
            self.started, self.lost = started, sent - done
        self.owed = sent - done - self.lost
        if self.owed <= self.FULL_TOKENS:
            self.window = None
            return 0.0
        self.window = self.window or (done, seconds)
        tokens, busy_s = done - self.window[0], seconds - self.window[1]
        if tokens > 0 and busy_s > self.WINDOW_S:
            weight = self.WEIGHT if self.seconds_per_token else 1.0
            self.seconds_per_token += weight * (busy_s / tokens - self.seconds_per_token)
            self.window = (done, seconds)
        return self.owed * self.seconds_per_token


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


def open_progress(version: str, instance: str) -> tuple[npt.NDArray[np.float64], int]:
    """What the instances of engine and tokenizer of one version share, and the row of this one, bert_tokenizer_0_ROW.

    Memory of its own where no server names a place.
    """
    prefix, shape = os.environ.get("BERT_SHM_PREFIX"), (64, 6)
    if not prefix:
        return np.zeros(shape), 0
    *_, group, row = instance.split("_")
    if group != "0" or int(row) >= shape[0]:
        raise ValueError(f"{instance} is one too many: allowed is one instance_group with a count of at most {shape[0]}")
    path = Path("/dev/shm") / f"{prefix}progress_{version}"  # noqa: S108 - POSIX shared memory, removed with the server
    with path.open("ab") as file:
        file.truncate(8 * shape[0] * shape[1])
    return np.asarray(np.memmap(path, np.float64, "r+", shape=shape)), int(row)


def is_engine_loading() -> bool:
    """Whether an engine of this server takes cores to load, as the time of a file that it writes says."""
    prefix = os.environ.get("BERT_SHM_PREFIX")
    path = Path("/dev/shm") / f"{prefix}progress_loading"  # noqa: S108 - as above
    return bool(prefix) and path.exists() and path.stat().st_mtime > time.time()


def check_contract(read: Callable[[str], Tokens], pad_id: int, parts: dict[str, Any], contract: dict[str, Any]) -> None:
    """Raise ValueError with the first golden text whose ids are not those of the build, or with the part that changed."""
    for golden in contract["golden"]:
        ids = read(golden["text"] * golden["times"]).ids
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


class Tokens(NamedTuple):
    """The ids of one text, special ones included, and whether it was cut."""

    ids: list[int]
    truncated: bool


def plain_reader(tokenizer: Tokenizer, saved: dict[str, Any], max_length: int) -> Callable[[str], Tokens | None]:
    """What the tokenizer makes of a text of plain ASCII, four times as fast; None for any other text.

    BERT splits such a text at spaces and at each punctuation mark, and what becomes of a word does not depend on its
    neighbours: its pieces are asked once of the tokenizer's own WordPiece, and then remembered. `saved` is tokenizer.json:
    a tokenizer of other parts, or one with added tokens that are looked for in other spellings, reads every text itself.
    """
    kinds = [(saved[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    added, around = saved["added_tokens"], tokenizer.encode("a")
    inside = [place for place, special in enumerate(around.special_tokens_mask) if not special]
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or any(one["normalized"] for one in added) or not inside:
        return lambda _text: None
    before, after = around.ids[: inside[0]], around.ids[inside[-1] + 1 :]
    room, lower = max_length - len(after), saved["normalizer"]["lowercase"]
    marks, wordpiece = [one["content"] for one in added], tokenizer.model
    is_plain, find_words = re.compile(r"[\t\n\r -~]*").fullmatch, re.compile(r"[0-9A-Za-z]+|[^\s0-9A-Za-z]").findall

    @functools.lru_cache(WORDS_KEPT)
    def pieces(word: str) -> tuple[int, ...]:
        return tuple(token.id for token in wordpiece.tokenize(word))

    def read(text: str) -> Tokens | None:
        if not is_plain(text) or any(mark in text for mark in marks):
            return None
        ids = before.copy()
        for word in find_words(text.lower() if lower else text):
            ids += pieces(word)
        return Tokens(ids[:room] + after, len(ids) > room)

    return read


def head_of(text: str, characters: int) -> str:
    """The text up to the last space among its first `characters`; all of it where it is shorter, or has no space there."""
    end = text.rfind(" ", 0, characters) if len(text) > characters else 0
    return text[:end] if end > 0 else text


class Reader:
    """A tokenizer that cuts texts at `max_length`, as `tokenizer.json` says, and reads no farther than it has to."""

    def __init__(self, saved: str) -> None:
        self.tokenizer = Tokenizer.from_str(saved)
        if self.tokenizer.truncation is None:
            raise ValueError("tokenizer.json sets no truncation, so it is not the one that training wrote")
        self.max_length = int(self.tokenizer.truncation["max_length"])
        self.keeps_the_head = self.tokenizer.truncation["direction"] == "right"
        plain = plain_reader(self.tokenizer, json.loads(saved), self.max_length)
        self.read_plain = plain if self.keeps_the_head else lambda _text: None

    def read(self, text: str) -> Tokens:
        """The tokens of a text; a long one is read as far as the model reads: 100 KB would hold its neighbours up for 40 ms.

        A token of BERT ends at a space in any case, so nothing changes as long as the beginning alone has too many tokens.
        """
        head = head_of(text, HEAD_CHARACTERS * self.max_length) if self.keeps_the_head else text
        tokens = self.read_whole(head)
        return tokens if tokens.truncated or len(head) == len(text) else self.read_whole(text)

    def read_whole(self, text: str) -> Tokens:
        """The tokens of a text, by words where it is plain."""
        if tokens := self.read_plain(text):
            return tokens
        (encoding,) = self.tokenizer.encode_batch_fast([text])
        return Tokens(encoding.ids, bool(encoding.overflowing))


def to_arrays(
    tokens: list[Tokens], length: int, pad_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """(input_ids [B, T], attention_mask [B, T], truncated [B, 1]) of one request, padded on the right to `length`."""
    ids = np.full((len(tokens), length), pad_id, dtype=np.int32)
    mask = np.zeros((len(tokens), length), dtype=np.int32)
    for row, one in enumerate(tokens):
        ids[row, : len(one.ids)] = one.ids
        mask[row, : len(one.ids)] = 1
    return ids, mask, np.array([[one.truncated] for one in tokens], dtype=np.bool_)


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
        config: dict[str, Any] = json.loads(args["model_config"])
        parameters, self.max_batch, self.largest = config["parameters"], int(config["max_batch_size"]), 0.0
        self.buckets = [int(length) for length in parameters["bucket_lengths"]["string_value"].split(",")]
        self.max_bytes = int(parameters["max_text_bytes"]["string_value"])
        self.max_wait_s = int(parameters["max_wait_ms"]["string_value"]) / 1000
        saved = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.reader = Reader(saved)
        self.pad_id = self.reader.tokenizer.token_to_id("[PAD]") or 0  # masked out, so any id that exists will do
        contract = json.loads((folder / "contract.json").read_text(encoding="utf-8"))
        check_contract(self.reader.read, self.pad_id, json.loads(saved), contract)
        facts = json.loads((folder / "release.json").read_text(encoding="utf-8"))
        release, self.features = facts["release"], facts.get("features", [])
        self.release = release.encode()
        self.backlog = Backlog(*open_progress(version, args["model_instance_name"]))
        self.counts = Counts({"version": version})
        self.info = pb_utils.MetricFamily(
            name="bert_release_info", description="1 for each release that is loaded", kind=pb_utils.MetricFamily.GAUGE
        )
        self.served = self.info.Metric(labels={"release": release, "version": version})
        self.served.set(1)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Tokenize the texts of all requests; one response a request, in order."""
        began = time.monotonic()
        wait_s, allowed_s = self.backlog.wait_s(began), self.max_wait_s
        if wait_s > allowed_s and is_engine_loading():
            allowed_s *= LOADING_FACTOR
        if wait_s > allowed_s:
            return self.refuse(requests, wait_s, allowed_s)
        accepted = [self.accept(request) for request in requests]
        responses = [
            self.respond(request, one) if isinstance(one, list) else pb_utils.InferenceResponse(error=one)
            for request, one in zip(requests, accepted, strict=True)
        ]
        lengths = [len(text.ids) for one in accepted if isinstance(one, list) for text in one]
        ended = time.monotonic()
        self.backlog.add(sum(lengths), ended)
        self.counts.add("bert_texts_total", len(lengths))
        self.counts.add("bert_tokens_total", sum(lengths))
        self.counts.add("bert_tokenizer_seconds_total", ended - began)
        self.counts.report(ended)
        return responses

    def refuse(
        self, requests: list[pb_utils.InferenceRequest], wait_s: float, allowed_s: float
    ) -> list[pb_utils.InferenceResponse]:
        """Refuse all of them, their texts unread. When no more are waiting, pause: what comes meanwhile is the next batch.

        More are waiting when the largest request seen lately would not have fitted in. The stub frees an error with its
        response, so each has one of its own.
        """
        sizes = [len(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()) for request in requests]
        self.largest = max(0.99 * self.largest, *sizes)
        if sum(sizes) + self.largest <= self.max_batch:
            time.sleep(GATHER_S)
        self.counts.add("bert_refused_total", len(requests), "overloaded")
        self.counts.report(time.monotonic())
        said = f"overloaded: the engine is {1000 * wait_s:.0f} ms behind, {1000 * allowed_s:.0f} ms are allowed"
        errors = [pb_utils.TritonError(f"{said}; try again later", pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        return [pb_utils.InferenceResponse(error=error) for error in errors]

    def accept(self, request: pb_utils.InferenceRequest) -> list[Tokens] | pb_utils.TritonError:
        """The tokens of a request's texts, or why it is refused."""
        try:
            texts = decode_texts(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy(), self.max_bytes)
            if self.features:
                tensor = pb_utils.get_input_tensor_by_name(request, "features")
                check_features(None if tensor is None else tensor.as_numpy(), self.features)
            return [self.reader.read(text) for text in texts]
        except ValueError as error:
            self.counts.add("bert_refused_total", 1, "invalid")
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)

    def respond(self, request: pb_utils.InferenceRequest, tokens: list[Tokens]) -> pb_utils.InferenceResponse:
        """The response to one request; its features go on to the engine."""
        length = padded_length(max(len(one.ids) for one in tokens), self.buckets, self.reader.max_length)
        ids, mask, truncated = to_arrays(tokens, length, self.pad_id)
        self.counts.add("bert_truncated_total", int(truncated.sum()))
        release = np.full((len(tokens), 1), self.release, dtype=object)
        tensors: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "truncated": truncated, "release": release}
        if self.features:
            tensors["features"] = pb_utils.get_input_tensor_by_name(request, "features").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])

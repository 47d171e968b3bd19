"""Triton python model: token ids -> logits on the CPU, by the runtime that `engine.json` beside this file names.

The batcher hands over requests of different lengths together. Their rows are pooled, stripped of padding, sorted by length
and cut into the calls that cost least, so that the cores compute tokens, not padding.

Shapes: B rows of a request, T its padded length, F features, numbers beside the text, C classes.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

CALL_TOKENS = 15  # what one more call costs, in tokens: less padding is worth a call only beyond that, as two steps of 8 are
MAX_TOKENS = 2048  # of a call: beyond this a larger batch is no faster and only holds more memory
LANE_TOKENS = 512  # of a call of an engine with lanes, each of which holds a call
KERNELS, LANE_KERNELS = 256, 128  # that OpenVINO keeps for shapes seen, 3 MiB each: by default 5000, which takes 100 MiB more
LANES_GAIN = 1.3  # how much more the lanes compute together than one call on all cores does, when all of them are busy
FEW_STEPS, GRID_STEPS = 32, 8  # a call of several rows and more steps than the first is a multiple of the second: see `Engine`
COUNTERS = {
    "bert_engine_rows_total": "Texts computed",
    "bert_engine_tokens_total": "Tokens computed, padding left out",
    "bert_engine_padding_tokens_total": "Padding computed beside the tokens, what fills a call up to a step included",
    "bert_engine_calls_total": "Calls of the runtime",
    "bert_engine_seconds_total": "Seconds spent in the runtime",
    "bert_engine_refused_total": "Requests without an answer: bad input, or the runtime failed",
}
REPORT_S = 0.5  # between two reports of the counts
LOADING_S, LOADED_S = 30.0, 3.0  # that loading takes at most, and until what queued up meanwhile has been answered

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Call = Callable[..., Float32]  # `INPUTS`, input_ids [B, T], attention_mask [B, T], perhaps features [B, F] -> logits [B, C]
Request = tuple[list[Int32], list[Float32]]  # its unpadded rows, and nothing or the features [B, F] beside them

INPUTS = ("input_ids", "attention_mask", "features")  # the last where the model reads numbers beside the text


class Lanes:
    """Calls of one runtime that run side by side, each on its share of the cores.

    Threads that compute one call together wait for each other at every layer, and all of them for one whose core another
    process took for a moment. Threads with a call each do not: int8 on two cores is 1.1 to 1.25 times as fast so.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.count = len(calls)
        self.free: queue.SimpleQueue[Call] = queue.SimpleQueue()
        for call in calls:
            self.free.put(call)
        self.threads = ThreadPoolExecutor(len(calls), "lane")

    def gain(self, sizes: Sequence[int]) -> bool:
        """Whether calls of so many tokens, the largest first, are spread evenly enough to be quicker here than in turn."""
        loads = [0] * self.count
        for size in sizes:
            loads[loads.index(min(loads))] += size
        return max(loads) * self.count <= LANES_GAIN * sum(sizes)

    def submit(self, *given: Any) -> Future[Float32]:
        """Run a call as soon as a lane is free."""
        return self.threads.submit(self._run, given)

    def _run(self, given: tuple[Any, ...]) -> Float32:
        call = self.free.get()
        try:
            return call(*given)
        finally:
            self.free.put(call)


class Engine(NamedTuple):
    """A runtime, called with lengths that are multiples of `step`, or all `positions`, and up to `most` tokens.

    One that keeps kernels for each number of tokens, B x T, holds 3 MiB for each: the numbers of larger calls are multiples
    of `GRID_STEPS` steps. A step of 1 means that the runtime keeps nothing and any length will do.
    """

    call: Call
    step: int
    positions: int
    most: int = MAX_TOKENS
    lanes: Lanes | None = None

    def columns(self, rows: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """The lengths T that are computed for so many rows, the longest of which is `length`."""
        steps = np.full_like(rows, -(-length // self.step))
        if self.step > 1:
            units = GRID_STEPS // np.gcd(GRID_STEPS, rows)
            units[(rows == 1) | (rows * steps <= FEW_STEPS)] = 1
            steps = -(-steps // units) * units
        return np.minimum(steps * self.step, self.positions)

    def length(self, lengths: list[int]) -> int:
        """T of a call that has rows of these lengths."""
        return int(self.columns(np.array([len(lengths)]), max(lengths))[0])

    def __call__(self, ids: Int32, mask: Int32, *beside: Any) -> Float32:
        """Fill up and call. A row without a token, which no client may send, keeps its length: its logits depend on it."""
        rows, length = ids.shape
        columns = self.length([length] * rows)
        if columns > length and mask[:, 0].all():
            filled = np.zeros((2, rows, columns), dtype=np.int32)
            filled[0, :, :length], filled[1, :, :length] = ids, mask
            ids, mask = filled
        return self.call(ids, mask, *beside)

    def answers(self, calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Float32]]:
        """(number of a call, its logits) as they come: in the lanes where that is quicker, or in turn on all cores."""
        sizes = {number: given[0].size for number, given in enumerate(calls)}
        order = sorted(sizes, key=sizes.__getitem__, reverse=True)
        if self.lanes is None or not self.lanes.gain([sizes[number] for number in order]):
            yield from ((number, self.call(*given)) for number, given in enumerate(calls))
            return
        futures = {self.lanes.submit(*calls[number]): number for number in order}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        finally:
            for future in futures:  # when one failed, the rest is not wanted
                future.cancel()


def open_engine(folder: Path, threads: int = 0) -> tuple[Engine, dict[str, Any]]:
    """The engine of a version folder and its `engine.json`; 0 threads are those of engine.json, there 0 means every core."""
    settings: dict[str, Any] = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
    opener = {"onnxruntime": open_onnxruntime, "openvino": open_openvino, "torch": open_torch}[settings["kind"]]
    call, *lanes = opener(folder, settings, threads or settings["threads"] or len(os.sched_getaffinity(0)))
    beside = Lanes(lanes) if lanes else None
    return Engine(call, settings.get("length_step", 1), settings["positions"], most_tokens(len(lanes)), beside), settings


def most_tokens(lanes: int) -> int:
    """Of a call of an engine with so many lanes."""
    return LANE_TOKENS if lanes > 1 else MAX_TOKENS


def open_onnxruntime(folder: Path, settings: dict[str, Any], threads: int) -> list[Call]:
    """`model.onnx` in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between requests starve server and tokenizer: on 2 cores p99 went from 20 to 517 ms.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return [lambda *given: session.run(["logits"], dict(zip(INPUTS, given, strict=False)))[0]]


@functools.cache
def openvino_core() -> Any:
    """One for the process: each lends it a stack for signals, which may outlive the core, and then a Ctrl-C is a crash."""
    import openvino

    return openvino.Core()


def open_openvino(folder: Path, settings: dict[str, Any], threads: int) -> list[Call]:
    """`model.xml` in OpenVINO; its threads sleep between requests, and are not bound to cores that the server needs.

    The call on all threads, and the lanes that `settings` name where the threads can be shared out evenly.
    """
    core, computes = openvino_core(), settings["inference_precision"]
    if computes == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this engine computes in bf16, which this processor lacks: build the release on this machine")
    options = {"INFERENCE_PRECISION_HINT": computes, "INFERENCE_NUM_THREADS": threads}
    options |= {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    model = core.read_model(folder / "model.xml")

    def open_calls(streams: int, kernels: int) -> list[Call]:
        own = {"NUM_STREAMS": streams, "CPU_RUNTIME_CACHE_CAPACITY": kernels}
        compiled = core.compile_model(model, "CPU", options | own)
        return [functools.partial(call, compiled.create_infer_request()) for _ in range(streams)]

    def call(request: Any, *given: Int32 | Float32) -> Float32:
        request.infer(dict(zip(INPUTS, given, strict=False)), share_inputs=True)
        return request.get_output_tensor().data.copy()  # type: ignore[no-any-return]

    lanes = settings.get("lanes", 1)
    return open_calls(1, KERNELS) + (open_calls(lanes, LANE_KERNELS) if lanes > 1 and threads % lanes == 0 else [])


def open_torch(folder: Path, settings: dict[str, Any], threads: int) -> list[Call]:
    """The exported program `model.pt2` in PyTorch, on a GPU where there is one."""
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    program = read_program(folder, device)

    @torch.inference_mode()
    def call(*given: Int32 | Float32) -> Float32:
        logits = program(**{name: torch.from_numpy(one).to(device) for name, one in zip(INPUTS, given, strict=False)})
        return logits.float().cpu().numpy()  # type: ignore[no-any-return]

    return [call]


def read_program(folder: Path, device: str) -> Any:
    """`model.pt2` on a device. The graph names the one that it was exported on, which `.to(device)` would leave there."""
    import torch
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(torch.export.load(folder / "model.pt2"), device).module()


def group_rows(lengths: list[int], engine: Engine) -> list[list[int]]:
    """The rows by rising length, cut into the groups of least tokens computed + `CALL_TOKENS` a group (dynamic programming).

    A group computes rows x `engine.columns` of its longest tokens, at most `engine.most` unless it is one row.
    """
    if len(lengths) < 2:
        return [[0]][: len(lengths)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    least = np.zeros(len(order) + 1)  # cost of the first so many rows
    begin = np.zeros(len(order) + 1, dtype=int)  # of the group that ends there
    for end in range(1, len(order) + 1):
        rows = np.arange(end, 0, -1)  # of a group that begins at each row before
        area = rows * engine.columns(rows, lengths[order[end - 1]])
        costs = least[:end] + area + CALL_TOKENS
        costs[:-1][area[:-1] > engine.most] = np.inf
        begin[end] = costs.argmin()
        least[end] = costs[begin[end]]
    groups, end = [], len(order)
    while end:
        groups.append(order[begin[end] : end])
        end = begin[end]
    return groups[::-1]


def pack_group(rows: list[Int32], length: int) -> tuple[Int32, Int32]:
    """Unpadded rows -> (input_ids, attention_mask), both [rows, length]."""
    ids = np.zeros((len(rows), length), dtype=np.int32)
    mask = np.zeros((len(rows), length), dtype=np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return ids, mask


def strip_padding(ids: Int32, mask: Int32) -> list[Int32]:
    """[B, T] -> B rows without their padding. Raises ValueError for a mask that is not ones followed by zeros, at least one."""
    lengths = mask.sum(axis=1)
    if ids.shape != mask.shape or lengths.min() < 1 or (mask != (np.arange(mask.shape[1]) < lengths[:, None])).any():
        raise ValueError("attention_mask must have the shape of input_ids and, in each row, ones and then zeros")
    return [row[:length] for row, length in zip(ids, lengths, strict=True)]


def check_rows(rows: list[Int32], vocabulary: int, positions: int) -> None:
    """Raise ValueError for what the model cannot read: OpenVINO would compute something from it."""
    for row in rows:
        if len(row) > positions or row.view(np.uint32).max() >= vocabulary:  # a negative one is a large one there
            raise ValueError(
                f"{len(row)} tokens with ids {row.min()} to {row.max()}: out of range; "
                f"this model reads 1 to {positions} tokens with ids 0 to {vocabulary - 1}"
            )


def run_rows(
    engine: Engine, rows: list[Int32], count: Callable[..., None] = lambda **_: None, beside: Sequence[Float32] = ()
) -> list[Float32]:
    """Unpadded rows -> the logits [C] of each, in order; `count` is told what every call computed, all padding included.

    `beside` has nothing, or the features of all rows, which follow their rows into the groups.
    """
    lengths = [len(row) for row in rows]
    logits: list[Float32] = [np.empty(0, np.float32)] * len(rows)
    groups = group_rows(lengths, engine)
    calls = [
        (
            *pack_group([rows[row] for row in group], engine.length([lengths[row] for row in group])),
            *(numbers[group] for numbers in beside),
        )
        for group in groups
    ]
    ended = time.perf_counter()
    for number, answers in engine.answers(calls):
        began, ended = ended, time.perf_counter()
        ids, mask, *_ = calls[number]
        tokens = int(mask.sum())
        count(rows=len(ids), tokens=tokens, padding_tokens=ids.size - tokens, calls=1, seconds=ended - began)
        for row, answer in zip(groups[number], answers, strict=True):
            logits[row] = answer
    return logits


def open_progress(version: str, instance: str) -> npt.NDArray[np.float64]:
    """Start, tokens and seconds so far, end of the last call: what the tokenizer of this version reads, to refuse in time.

    The row of this instance, bert_engine_0_ROW; memory of its own where no server names a place.
    """
    prefix, shape = os.environ.get("BERT_SHM_PREFIX"), (64, 6)
    if not prefix:
        return np.zeros(4)
    *_, group, row = instance.split("_")
    if group != "0" or int(row) >= shape[0]:
        raise ValueError(f"{instance} is one too many: allowed is one instance_group with a count of at most {shape[0]}")
    path = Path("/dev/shm") / f"{prefix}progress_{version}"  # noqa: S108 - POSIX shared memory, removed with the server
    with path.open("ab") as file:
        file.truncate(8 * shape[0] * shape[1])
    return np.asarray(np.memmap(path, np.float64, "r+", shape=shape))[int(row), :4]


def announce_loading(seconds: float) -> None:
    """Tell the tokenizers of this server that an engine takes cores for a while: the time of a file says until when."""
    if prefix := os.environ.get("BERT_SHM_PREFIX"):
        path, until = Path("/dev/shm") / f"{prefix}progress_loading", time.time() + seconds  # noqa: S108 - as above
        path.touch()
        os.utime(path, (until, until))


class TritonPythonModel:
    """What Triton's stub loads; see the module docstring."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine of this version."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(
                f"numpy {np.__version__}: the stub of Triton 2.51 corrupts tensors with numpy 2; install numpy<2"
            )
        parameters: dict[str, Any] = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        announce_loading(LOADING_S)
        try:
            self.engine, self.settings = open_engine(folder, int(parameters["threads"]["string_value"]))
        finally:
            announce_loading(LOADED_S)
        self.started = time.monotonic()
        self.progress = open_progress(args["model_version"], args["model_instance_name"])
        self.progress[:] = (self.started, 0.0, 0.0, self.started)
        self.families, self.counters = [], {}
        self.pending: dict[str, float] = {}
        self.reported_at = 0.0
        if hasattr(pb_utils, "MetricFamily"):  # older servers have none
            labels = {"model": args["model_name"], "version": args["model_version"]}
            for name, text in COUNTERS.items():
                family = pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
                self.families.append(family)  # a metric ends with its family
                self.counters[name] = family.Metric(labels=labels)

    def finalize(self) -> None:
        """Take this instance out of what the tokenizer counts with, unless its successor has begun to write there."""
        if self.progress[0] == self.started:
            self.progress[:] = 0.0

    def count(self, **amounts: float) -> None:
        """Add to the counts, `rows=3` to bert_engine_rows_total, and to the progress that the tokenizer reads."""
        self.progress[1] += amounts.get("tokens", 0)
        self.progress[2] += amounts.get("seconds", 0)
        for name, amount in amounts.items():
            self.pending[name] = self.pending.get(name, 0) + amount

    def report(self) -> None:
        """Tell the server what was counted, unless that was done a moment ago: each counter costs a message to it."""
        if time.monotonic() - self.reported_at < REPORT_S:
            return
        for name, amount in self.pending.items():
            if counter := self.counters.get(f"bert_engine_{name}_total"):
                counter.increment(amount)
        self.pending, self.reported_at = {}, time.monotonic()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """One response a request, in order; bad input fails its own request, before anything is computed."""
        self.progress[3] = np.inf  # under way
        try:
            read = [self.read(request) for request in requests]
            answers = iter(self.answer([one for one in read if isinstance(one, tuple)]))
            return [next(answers) if isinstance(one, tuple) else pb_utils.InferenceResponse(error=one) for one in read]
        finally:
            self.progress[3] = time.monotonic()
            self.report()

    def read(self, request: pb_utils.InferenceRequest) -> Request | pb_utils.TritonError:
        """A request without its padding, or why it is refused."""
        names = INPUTS if self.settings.get("features") else INPUTS[:2]
        ids, mask, *beside = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names)
        try:
            rows = strip_padding(ids, mask)
            check_rows(rows, self.settings["vocab_size"], self.settings["positions"])
        except ValueError as error:
            self.count(refused=1)
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        return rows, beside

    def answer(self, requests: list[Request]) -> list[pb_utils.InferenceResponse]:
        """One response for the rows of each request; when a joint run fails, each request is run alone, to fail by itself."""
        try:
            rows = [row for rows, _ in requests for row in rows]
            beside = [np.concatenate(parts) for parts in zip(*(numbers for _, numbers in requests), strict=True)]
            remaining = iter(run_rows(self.engine, rows, self.count, beside))
        except Exception as error:  # the runtimes have no narrower base for what a run may raise
            if len(requests) > 1:
                return [self.answer([request])[0] for request in requests]
            self.count(refused=1)
            said = f"{self.settings['kind']} failed: {error}"
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(said, pb_utils.TritonError.INTERNAL))]
        logits = [np.stack([next(remaining) for _ in rows]) for rows, _ in requests]  # [B, C] of each request
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logits", one)]) for one in logits]

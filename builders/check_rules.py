"""Whether a server will load an engine, as far as files tell: versions, GPU, header, profiles. Pure; read by `builders.check`.

A plan runs on the TensorRT release and the kind of GPU that built it, unless it was built version or hardware compatible:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from builders.containers import Container, containers_with, same_release, version_tuple
from builders.packed_graph import OFFSETS
from builders.plan_files import plan_outputs
from contract.tensors import FEATURES, INPUT_IDS

Verdict = Literal["loads", "loads as assumed", "does not load", "not established"]
PLAN_MAGIC = (b"ftrt", b"ptrt")
"""How plans of TensorRT begin."""
RTX_MAGIC = b"vtrt"
"""How plans of TensorRT-RTX begin (1.7.1: another magic is refused when a plan is opened)."""
HEADER_BYTES = 4096
"""How far into a file a plan is looked for behind foreign bytes."""
IR_10_SINCE = (1, 18)
"""The first ONNX Runtime that reads ONNX IR version 10, which our graphs are written in."""


@dataclass
class Finding:
    """What is known about one version."""

    wrong: list[str] = field(default_factory=list)
    """Why it will not load."""
    unknown: list[str] = field(default_factory=list)
    """What would have to be known to say that it loads."""
    assumed: list[str] = field(default_factory=list)
    """What no file tells, and what it loads with alone."""
    notes: list[str] = field(default_factory=list)
    """What it needs beside."""

    @property
    def verdict(self) -> Verdict:
        """The worst of it."""
        if self.wrong or self.unknown:
            return "does not load" if self.wrong else "not established"
        return "loads as assumed" if self.assumed else "loads"


@dataclass(frozen=True)
class Server:
    """What will load the engines."""

    container: Container
    tensorrt: str | None
    """Stated by the caller, or the table's; None where neither knows."""
    established: bool
    """Whether the caller stated it, or the table has it from this very image."""
    compute_capability: str | None
    """Of its GPU, as 8.9; None where the caller does not say."""


def check_header(head: bytes, found: Finding) -> None:
    """Look at the first bytes of a plan file."""
    if head.startswith(PLAN_MAGIC):
        return
    if head.startswith(RTX_MAGIC):
        found.wrong.append("the plan is TensorRT-RTX's, which tensorrt_plan does not load")
        return
    inside = [head.find(magic) for magic in (*PLAN_MAGIC, RTX_MAGIC) if magic in head]
    if inside:
        found.wrong.append(f"{min(inside)} foreign bytes stand before the plan; cut them off, or build it again")
    else:
        found.wrong.append(f"model.plan is no plan: it begins with {head[:8]!r}")


def check_tensorrt_version(facts: Mapping[str, Any], server: Server, found: Finding) -> None:
    """Compare the plan's TensorRT with the server's."""
    runtime = facts.get("runtime", {})
    ours = str(runtime.get("version", ""))
    if runtime.get("name") == "tensorrt_rtx":
        found.wrong.append(f"it was built with TensorRT-RTX {ours}, which no Triton image serves")
        return
    if not ours:
        found.unknown.append("the plan does not say which TensorRT built it")
    elif server.tensorrt is None or not server.established:
        found.unknown.append(
            f"it was built with TensorRT {ours}, and that of {server.container.image} is not established "
            f"({server.tensorrt or 'unknown'}: {server.container.evidence}); look it up there and state it with --tensorrt"
        )
    elif not same_release(ours, server.tensorrt):
        _check_compatible(ours, server.tensorrt, bool(facts.get("version_compatible")), found)


def _check_compatible(ours: str, theirs: str, compatible: bool, found: Finding) -> None:
    """Version compatibility goes forward only, within a major version and from 8 to 10 and from 10 to 11."""
    plan, server = version_tuple(ours), version_tuple(theirs)
    images = ", ".join(container.tag for container in containers_with(ours))
    where = f"; it fits {images}" if images else ""
    if not compatible:
        found.wrong.append(f"it was built with TensorRT {ours}, the server has {theirs}{where}, or build it again there")
    elif plan > server:
        found.wrong.append(f"it was built with TensorRT {ours}, newer than the server's {theirs}{where}")
    elif server[0] != plan[0] and (plan[0], server[0]) not in {(8, 10), (10, 11)}:
        found.wrong.append(f"no compatibility leads from TensorRT {ours} to {theirs}; build it again")
    else:
        found.notes.append("needs --backend-config=tensorrt,version-compatible=true")


def check_gpu(facts: Mapping[str, Any], server: Server, found: Finding) -> None:
    """Compare the plan's GPU with the server's."""
    theirs, ours = server.compute_capability, facts.get("hardware", {}).get("compute_capability")
    if theirs is None:
        found.notes.append("GPU not checked; state it with --gpu-compute-capability")
    elif ours is None:
        found.unknown.append("the plan does not say which GPU it was built on")
    elif ours != theirs:
        if facts.get("hardware_compatibility") == "ampere_plus" and min(version_tuple(ours), version_tuple(theirs)) >= (8, 0):
            return
        found.wrong.append(f"it was built on compute capability {ours}, the server has {theirs}")


def check_config(facts: Mapping[str, Any], config: Mapping[str, Any], found: Finding) -> None:
    """Compare the plan's outputs, all of which tensorrt_plan wants named, layout and profiles with the engine's config."""
    profiles: Sequence[Mapping[str, Any]] = facts.get("profiles", [])
    if not profiles:
        found.unknown.append("the plan does not say which profiles it has")
        return
    fix = "python -m builders.tensorrt_config fits the configs"
    gives, named = plan_outputs(facts), [tensor["name"] for tensor in config.get("output", [])]
    if sorted(gives) != sorted(named):
        found.wrong.append(f"the plan gives {', '.join(gives)}, the config names {', '.join(named) or 'none'}; {fix}")
    packed = facts.get("layout") == "packed"
    if packed != bool(config.get("batch_input")):
        found.wrong.append(f"the plan is {facts.get('layout')}, the config is not; {fix}")
        return
    largest = profiles[0][OFFSETS]["max"][0] - 1 if packed else min(profile[INPUT_IDS]["max"][0] for profile in profiles)
    if (most := config.get("max_batch_size", 0)) > largest:
        found.wrong.append(f"max_batch_size is {most}, the plan takes {largest}; {fix}")
    listed = sorted({int(number) for group in config.get("instance_group", []) for number in group.get("profile", [])})
    if listed and listed[-1] >= len(profiles):
        found.wrong.append(f"the config lists profile {listed[-1]}, the plan has {len(profiles)}; {fix}")
    elif len(profiles) > 1 and listed != list(range(len(profiles))):
        found.wrong.append(f"the plan has {len(profiles)} profiles, the config lists {len(listed)}; {fix}")


def check_features(facts: Mapping[str, Any], config: Mapping[str, Any], found: Finding) -> None:
    """Compare the numbers that the release reads beside each text with those that the engine's config takes."""
    taken = next((int(tensor["dims"][0]) for tensor in config.get("input", []) if tensor["name"] == FEATURES), 0)
    wanted = facts.get("features", 0)
    wanted = wanted if isinstance(wanted, int) else len(wanted)  # engine.json counts, the manifest names
    if taken != wanted:
        found.wrong.append(
            f"it reads {wanted} features beside each text, the config takes {taken}; publish it, which fits that"
        )


def check_python_engine(facts: Mapping[str, Any], server: Server, found: Finding) -> None:
    """An engine of the python backend: what the image must bring."""
    runtime = facts.get("runtime", {})
    kind = facts.get("kind") or runtime.get("name") or "its runtime"
    named = f"{runtime.get('name', kind)} {runtime.get('version', '')}".strip()
    found.assumed.append(f"python backend: the server's Python has {named}")
    if facts.get("precision") == "bf16" or facts.get("inference_precision") == "bf16":
        needs = "avx512_bf16 or amx_bf16" if kind == "openvino" else "avx512_bf16 or amx_bf16, or a CUDA GPU"
        found.assumed.append(f"its processor has {needs}")
    if kind == "onnxruntime" and server.container.onnxruntime:
        theirs = server.container.onnxruntime
        able = version_tuple(theirs) >= IR_10_SINCE
        note = f"the image's own ONNX Runtime backend {theirs} " + ("reads it too" if able else "is too old for it")
        found.notes.append(note)

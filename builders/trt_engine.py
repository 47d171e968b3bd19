"""The one place that talks to TensorRT: parse, build, open, inspect, refit. For TensorRT 10.13 to 11 and TensorRT-RTX.

The module is a parameter, since one script serves all of them: TensorRT needs the GPU that will serve, TensorRT-RTX (another
product, whose plans Triton does not load) builds on any machine and is what this code is tested with.

TensorRT 11 is strongly typed. 10 is told to be, so that in both the graph alone decides (`builders.graph_writer`).

API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from builders.containers import CONTAINERS, version_tuple
from builders.plan_progress import noting_interrupts, progress_monitor
from builders.plan_settings import PlanSettings, Profile
from contract.command import Failure, UsageError
from contract.files import write_bytes

MINIMUM = {"tensorrt": (10, 13), "tensorrt_rtx": (1, 4)}
_IMPORTS = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")}


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and what it was built from."""

    data: bytes
    network: Counter[tuple[str, str]]
    """Layer type and output type -> how often, of the network before it was built."""
    warnings: list[str]


def load_tensorrt(name: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`. Raises UsageError when it is absent or too old, saying what to do."""
    if name not in _IMPORTS:
        raise UsageError(f"--tensorrt.module is {name!r}; known are {', '.join(_IMPORTS)}")
    try:
        module = [importlib.import_module(part) for part in _IMPORTS[name]][-1]
    except (ImportError, OSError) as error:
        raise UsageError(f"{name} cannot be imported ({error}); {_where_to_get(name)}") from error
    check_version(name, module.__version__)
    return module


def check_version(name: str, version: str) -> None:
    """Raise UsageError when this version of the module is too old for what is built here."""
    if version_tuple(version) < MINIMUM[name]:
        wanted = ".".join(map(str, MINIMUM[name]))
        raise UsageError(f"{name} is {version}; at least {wanted} is needed; {_where_to_get(name)}")


def _where_to_get(name: str) -> str:
    if name == "tensorrt_rtx":
        return "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings (NVIDIA's licence)"
    able = [found for found in CONTAINERS if found.tensorrt and version_tuple(found.tensorrt) >= MINIMUM["tensorrt"]]
    return f"run this inside the image that serves, {able[0].image} or a later one (docs/tensorrt.md)"


@functools.cache
def log_of(trt: Any) -> Any:
    """The logger of the process, which keeps what TensorRT says; the first one that TensorRT sees is the only one it uses."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

        def begin(self) -> None:
            self.errors, self.warnings = [], []

    return Log()


def is_rtx(trt: Any) -> bool:
    """Whether the module is TensorRT-RTX."""
    return hasattr(trt, "ComputeCapability")


def build_plan(trt: Any, model: onnx.ModelProto, profiles: Sequence[Profile], settings: PlanSettings) -> BuiltPlan:
    """Build a plan of `model`; takes minutes on a GPU, seconds with TensorRT-RTX, and shows how far it is.

    Raises:
        UsageError: settings that this TensorRT does not have, or that exclude each other.
        Failure: TensorRT cannot parse or build; the message holds every error that it gave.
        KeyboardInterrupt: interrupted during the build, which is then stopped.
    """
    check_settings(trt, settings, profiles=len(profiles))
    log = log_of(trt)
    log.begin()
    builder = _builder(trt, log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = _parse(trt, network, model, log)
    config = builder.create_builder_config()
    _configure(trt, config, settings)
    for profile in profiles:
        _add_profile(builder, config, profile)
    if settings.timing_cache:
        read_timing_cache(config, settings.timing_cache)
    census = network_census(network)
    with tqdm(desc=f"building with {trt.__name__.split('_bindings')[0]} {trt.__version__}", unit="steps", total=0) as bar:
        monitor = progress_monitor(trt, bar)
        config.progress_monitor = monitor
        with noting_interrupts(monitor):
            plan = builder.build_serialized_network(network, config)
    del parser  # it holds the weights that the network points to, until here
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise Failure(_complaint("TensorRT could not build the plan", log))
    if settings.timing_cache:
        settings.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(settings.timing_cache, bytes(config.get_timing_cache().serialize()))
    return BuiltPlan(bytes(plan), census, list(log.warnings))


def check_settings(trt: Any, settings: PlanSettings, *, profiles: int) -> None:
    """Raise UsageError for settings that this TensorRT does not have, or that exclude each other."""
    if settings.refittable and profiles > 1:
        raise UsageError(
            f"a refittable plan has one profile, not {profiles}; leave --tensorrt.refittable or --tensorrt.lengths out"
        )
    if is_rtx(trt):
        if settings.timing_cache:
            raise UsageError("TensorRT-RTX keeps no timing cache; leave --tensorrt.timing-cache out")
        if settings.hardware_compatibility != "none":
            raise UsageError(
                "TensorRT-RTX is told its GPUs by --tensorrt.compute-capabilities; leave --tensorrt.hardware-compatibility out"
            )
        known = [name.removeprefix("SM") for name in dir(trt.ComputeCapability) if name.startswith("SM")]
        strange = [found for found in settings.compute_capabilities if found.replace(".", "") not in known]
        if strange:
            able = ", ".join(f"{name[:-1]}.{name[-1]}" for name in sorted(known, key=int))
            raise UsageError(f"--tensorrt.compute-capabilities has {strange[0]}; this TensorRT-RTX builds for {able}")
    elif settings.compute_capabilities:
        raise UsageError(
            "TensorRT builds for the GPU at hand; --tensorrt.compute-capabilities is for --tensorrt.module tensorrt_rtx"
        )


def _builder(trt: Any, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except Exception as error:  # the binding's factory gives a TypeError without a GPU, others by version
        raise Failure(_complaint(f"TensorRT has no builder here ({error}); it needs the GPU that will serve", log)) from error


def _parse(trt: Any, network: Any, model: onnx.ModelProto, log: Any) -> Any:
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        texts = [f"{error.node_name()}: {error.desc()}" if error.node_name() else error.desc() for error in errors]
        raise Failure("TensorRT cannot parse the graph:\n  " + "\n  ".join(texts or log.errors or ["no reason given"]))
    return parser


def _configure(trt: Any, config: Any, settings: PlanSettings) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * 2**20)
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the inspector's proof reads
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, settings.hardware_compatibility.upper())
        config.hardware_compatibility_level = level
    if settings.compute_capabilities:
        config.num_compute_capabilities = len(settings.compute_capabilities)
        for number, found in enumerate(settings.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + found.replace(".", "")), number)


def _add_profile(builder: Any, config: Any, profile: Profile) -> None:
    wanted = builder.create_optimization_profile()
    for name, shapes in profile.shapes.items():
        wanted.set_shape(name, *shapes)
    if config.add_optimization_profile(wanted) < 0:
        raise Failure(f"TensorRT does not take the profile {profile.as_json()}")


def read_timing_cache(config: Any, path: Path) -> None:
    """Give the builder the timings in `path`, or none yet. Raises Failure for those of another GPU or TensorRT."""
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise Failure(f"{path} is no timing cache of this GPU and TensorRT; name another file, or remove it")


def network_census(network: Any) -> Counter[tuple[str, str]]:
    """(layer type, type of its first output) -> how often, as ("MATRIX_MULTIPLY", "HALF")."""
    layers = (network.get_layer(number) for number in range(network.num_layers))
    return Counter((_short(layer.type), _short(layer.get_output(0).dtype)) for layer in layers)


def _short(value: Any) -> str:
    return str(value).rsplit(".", 1)[-1]


def open_plan(trt: Any, plan: bytes, *, version_compatible: bool = False) -> Any:
    """The engine in a plan. Raises Failure without a GPU, or for a plan of another TensorRT or GPU."""
    log = log_of(trt)
    log.begin()
    try:
        runtime = trt.Runtime(log)
    except Exception as error:  # as in `_builder`
        raise Failure(_complaint(f"TensorRT has no runtime here ({error}); it needs a GPU", log)) from error
    runtime.engine_host_code_allowed = version_compatible
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise Failure(_complaint("TensorRT cannot open the plan here", log))
    return engine


def inspect_engine(trt: Any, engine: Any) -> str:
    """The engine inspector's JSON about every layer of an opened engine."""
    information: str = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return information


def stays_refittable(trt: Any) -> bool:
    """Whether a plan that was refitted can be refitted again: from TensorRT 10.14 on."""
    return hasattr(trt.SerializationFlag, "INCLUDE_REFIT")


def refit_plan(trt: Any, plan: bytes, model: onnx.ModelProto, *, version_compatible: bool = False) -> bytes:
    """The plan with the weights of `model`. Raises Failure without a GPU, or for weights that do not fit."""
    engine, log = open_plan(trt, plan, version_compatible=version_compatible), log_of(trt)
    if not engine.refittable:
        raise Failure("the plan was not built --tensorrt.refittable; build a new one")
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(model.SerializeToString()):
        errors = [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise Failure("TensorRT does not take the weights:\n  " + "\n  ".join(errors))
    if not refitter.refit_cuda_engine():
        raise Failure(f"weights are missing for the refit: {', '.join(refitter.get_missing_weights())}")
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if stays_refittable(trt):
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(config))


def _complaint(what: str, log: Any) -> str:
    return what + "".join(f"\n  {line}" for line in dict.fromkeys(log.errors))

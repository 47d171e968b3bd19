"""Put the weights of a newly merged checkpoint into an existing TensorRT plan: seconds instead of a build of minutes.

    python -m builders.refit build/release/bert_engine --checkpoint build/merged-2 --output build/refitted.plan

The plan must have been built `--tensorrt.refittable`, and is opened, so this needs the GPU and the TensorRT that built it. The
checkpoint must have the plan's architecture: every node, and name, type and shape of every initializer are compared first.

Triton cannot refit a plan that it serves, so what is swapped is a whole new version. For a release, proved like any other, give
the engine folder to the build instead: `python -m builders.build`, `--tensorrt.refit-from` (docs/tensorrt.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from builders.graph_census import check_graph
from builders.graph_writer import Typing
from builders.plan_files import PLAN_FILE, check_refittable, check_weights_fit, read_engine_json
from builders.tensorrt_release import write_graph
from builders.trt_engine import load_tensorrt, refit_plan, stays_refittable
from contract.command import UsageError, run_command
from contract.files import write_bytes
from training.checkpoint import check_certified, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Put the weights of a newly merged checkpoint into an existing TensorRT plan."""

    engine: Annotated[Path, tyro.conf.Positional]
    """Engine folder of a release or of a deployed version: model.plan, graph.onnx, engine.json."""
    checkpoint: Path
    """Merged checkpoint folder, of training.merge, whose weights go in."""
    output: Path
    """Plan to write; it must not exist."""


def refit(options: Refit) -> None:
    """Run the command; see the module docstring."""
    if options.output.exists():
        raise UsageError(f"the output {options.output} exists already; name another one, or remove it first")
    check_certified(options.checkpoint)
    facts = read_engine_json(options.engine)
    trt = load_tensorrt(facts["runtime"]["name"])
    check_refittable(options.engine, trt)
    model = load_checkpoint(options.checkpoint).model
    graph = write_graph(model, Typing(facts["precision"]), facts["layout"], facts["outputs"])
    check_graph(graph)
    check_weights_fit(options.engine, graph)
    compatible = bool(facts.get("version_compatible"))
    plan = refit_plan(trt, (options.engine / PLAN_FILE).read_bytes(), graph, version_compatible=compatible)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(options.output, plan)
    print(f"wrote {options.output}: the plan of {options.engine} with the weights of {options.checkpoint}")
    if not stays_refittable(trt):
        print(f"it cannot be refitted again: TensorRT {trt.__version__} does not keep that, 10.14 does")


if __name__ == "__main__":
    run_command(lambda: refit(tyro.cli(Refit, prog="python -m builders.refit", description=__doc__)))

"""Fit a deployed repository's configs to a TensorRT plan: its profiles, its lengths, its layout.

    python -m builders.tensorrt_config build/release --repository build/model_repository

The configs of a rendered repository hold for any padded plan of one profile. A plan of several needs them listed, or Triton
uses the first alone; a length plan's lengths belong to the tokenizer step, which pads to them. A packed plan changes more:

- the tokenizer step pads nothing, and the ensembles take one text a request: Triton counts the tokens of a request, not of a
  text, so a request of two texts would be read as one long text (`BATCH_ACCUMULATED_ELEMENT_COUNT` in its backend library);
- the engine takes ragged token ids without a mask, and the server tells it where each request begins.

A plan of `--tensorrt.extra-outputs` is loaded only where the config names every output of it.

Versions and pins stay as they are. Run it before the first version of another layout is published, without a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from google.protobuf import text_format

from builders.model_config import parse, render
from builders.packed_graph import OFFSETS
from builders.plan_files import plan_outputs, read_engine_json
from builders.standard_graph import LABEL_INDEX, PROBABILITIES
from contract.command import UsageError, run_command
from contract.files import read_json
from contract.repository import locked, replace_configs
from contract.tensors import ATTENTION_MASK, ENGINE, ENSEMBLES, FEATURES, INPUT_IDS, LOGITS, MAX_BATCH_SIZE, TOKENIZER

NO_PADDING = "1"
"""Bucket lengths of a tokenizer step that pads to nothing: a longer text is its own bucket."""


_OUTPUTS = {
    LOGITS: {"data_type": "TYPE_FP32", "dims": [-1]},
    PROBABILITIES: {"data_type": "TYPE_FP32", "dims": [-1]},
    LABEL_INDEX: {"data_type": "TYPE_INT32", "dims": [1]},
}
"""What an engine may give, as Triton has it."""


@dataclass(frozen=True, kw_only=True)
class TensorRTConfig:
    """Fit a deployed repository's configs to the TensorRT plan of a release."""

    release: Annotated[Path, tyro.conf.Positional]
    """Release folder of a TensorRT engine, of builders.build."""
    repository: Path = Path("build/model_repository")
    """Deployed repository, rendered already."""


def fit_engine(config: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Change the engine's config in place."""
    layout, profiles = facts["layout"], facts["profiles"]
    config["output"] = [{"name": name, **_OUTPUTS[name]} for name in plan_outputs(facts)]
    ids = next(tensor for tensor in config["input"] if tensor["name"] == INPUT_IDS)
    ids.pop("allow_ragged_batch", None)
    config.pop("batch_input", None)
    if layout == "packed":
        begins = {"kind": "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "target_name": [OFFSETS], "source_input": [INPUT_IDS]}
        config["batch_input"] = [{**begins, "data_type": ids["data_type"]}]
        config["input"] = [{**ids, "allow_ragged_batch": True}]
        config["max_batch_size"] = int(profiles[0][OFFSETS]["max"][0]) - 1
    else:
        beside = [tensor for tensor in config["input"] if tensor["name"] == FEATURES]
        config["input"] = [ids, {**ids, "name": ATTENTION_MASK}, *beside]
        config["max_batch_size"] = min(int(profile[INPUT_IDS]["max"][0]) for profile in profiles)
    for group in config["instance_group"]:
        group["profile"] = [str(number) for number in range(len(profiles))] if len(profiles) > 1 else []


def fit_tokenizer(config: dict[str, Any], layout: str, profiles: Sequence[dict[str, Any]]) -> None:
    """Change the tokenizer's config in place; one padded profile leaves the lengths as they are."""
    lengths = [str(profile[INPUT_IDS]["max"][-1]) for profile in profiles]
    if layout == "packed":
        config["parameters"]["bucket_lengths"]["string_value"] = NO_PADDING
    elif len(lengths) > 1:
        config["parameters"]["bucket_lengths"]["string_value"] = ",".join(lengths)


def fit_ensemble(config: dict[str, Any], layout: str, max_batch_size: int) -> None:
    """Change an ensemble's config in place."""
    config["max_batch_size"] = 1 if layout == "packed" else min(MAX_BATCH_SIZE, max_batch_size)
    for step in config["ensemble_scheduling"]["step"]:
        if step["model_name"] == ENGINE:
            wanted = [INPUT_IDS] if layout == "packed" else [INPUT_IDS, ATTENTION_MASK]
            beside = {name: value for name, value in step["input_map"].items() if name == FEATURES}
            step["input_map"] = {name: name for name in wanted} | beside


def fit_repository(repository: Path, facts: dict[str, Any]) -> None:
    """Rewrite the configs of `repository` for a plan, all or none; nobody publishes meanwhile.

    Raises:
        UsageError: a repository with versions of another layout or with other outputs, or none.
        Failure: another process is publishing to it.
    """
    read_config(repository / ENGINE / "config.pbtxt")
    with locked(repository, "fitting the configs of"):
        replace_configs(repository, fitted_configs(repository, facts))


def fitted_configs(repository: Path, facts: dict[str, Any]) -> dict[Path, bytes]:
    """The configs of `repository` as they have to be for a plan."""
    layout, profiles = facts["layout"], facts["profiles"]
    for version in sorted((repository / ENGINE).glob("*/engine.json")):
        other = read_json(version)
        if (kind := other.get("layout", "padded")) != layout:
            raise UsageError(f"{version.parent} is {kind}, this plan {layout}; deploy it into a repository of its own")
        if other.get("kind") == "tensorrt" and (theirs := plan_outputs(other)) != (ours := plan_outputs(facts)):
            given = f"{version.parent} gives {', '.join(theirs)}, this plan {', '.join(ours)}"
            raise UsageError(f"{given}; deploy it into a repository of its own")
    configs = {name: read_config(repository / name / "config.pbtxt") for name in (ENGINE, TOKENIZER, *ENSEMBLES)}
    fit_engine(configs[ENGINE], facts)
    fit_tokenizer(configs[TOKENIZER], layout, profiles)
    for name in ENSEMBLES:
        fit_ensemble(configs[name], layout, configs[ENGINE]["max_batch_size"])
    return {repository / name / "config.pbtxt": render(config) for name, config in configs.items()}


def read_config(path: Path) -> dict[str, Any]:
    """The config in a file. Raises UsageError when there is none."""
    try:
        return parse(path.read_bytes())
    except (OSError, text_format.ParseError) as error:
        raise UsageError(f"cannot read {path}: {error}; python -m builders.build renders a repository") from error


def main(options: TensorRTConfig) -> None:
    """Run the command; see the module docstring."""
    facts = read_engine_json(options.release / ENGINE)
    fit_repository(options.repository, facts)
    print(f"fitted {options.repository} to a {facts['layout']} plan of {len(facts['profiles'])} profile(s)")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(TensorRTConfig, prog="python -m builders.tensorrt_config", description=__doc__)))

"""The configs of a repository whose releases read numbers beside the text (`contract.features`).

The committed configs serve text. As the first release of a deployed repository is published, its configs are made to take what
that release reads; every later one must read the same, since the requests of all clients do.

Clients' features are optional, so that the tokenizer step can say what is missing. It checks them and hands them to the engine.
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2

from contract.tensors import ENGINE, ENSEMBLES, FEATURES, TOKENIZER

_CHECKED = "checked_features"  # in the ensembles: what the tokenizer step lets through


def take_features(config: Any, count: int) -> None:
    """Change a model's config in place so that it takes `count` features beside each text, whatever it took before."""
    for step in config.ensemble_scheduling.step:
        for names in (step.input_map, step.output_map):
            names.pop(FEATURES, None)
    for tensors in (config.input, config.output):
        kept = [tensor for tensor in tensors if tensor.name != FEATURES]
        del tensors[:]
        tensors.extend(kept)
    if count == 0:
        return
    if config.name in {TOKENIZER, *ENSEMBLES}:
        _add(config.input, -1).optional = True
    if config.name == TOKENIZER:
        _add(config.output, count)
    if config.name == ENGINE:
        _add(config.input, count)
    for step in config.ensemble_scheduling.step:
        step.input_map[FEATURES] = FEATURES if step.model_name == TOKENIZER else _CHECKED
        if step.model_name == TOKENIZER:
            step.output_map[FEATURES] = _CHECKED


def taken_features(config: Any) -> int:
    """How many features the engine of this config takes."""
    return next((int(tensor.dims[0]) for tensor in config.input if tensor.name == FEATURES), 0)


def _add(tensors: Any, count: int) -> Any:
    return tensors.add(name=FEATURES, data_type=model_config_pb2.TYPE_FP32, dims=[count])

"""LoRA adapters on disk, in PEFT's own format: ours load in PEFT, with the head, and PEFT's load here.

    adapter_config.json          rank, alpha, dropout, module paths, the base model
    adapter_model.safetensors    lora_A and lora_B of each module, and the classification head

Not here: DoRA, trained biases, and kinds of LoRA that change the base weights or the forward pass; they are refused by name.
Key names: https://github.com/huggingface/peft/blob/v0.17.0/src/peft/utils/save_and_load.py
Which modules a configuration means: check_target_module_exists in peft/tuners/tuners_utils.py, and get_pattern_key in
peft/utils/other.py, of PEFT 0.21.2.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from contract.command import UsageError
from contract.files import read_json, write_bytes, write_json
from training.lora import HEAD, TABULAR_HEAD, LoraLinear, head_of, lora_modules, select_linears

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."

_PLAIN = {"peft_type": "LORA", "bias": "none"}
_KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that draw A and B only; the others (pissa, olora, loftq, ...) change the base weights."""
_MUST_BE_UNSET = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "megatron_config",
)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors under PEFT's names. Raises ValueError when the model has no adapter."""
    state: dict[str, Tensor] = {}
    for path, module in lora_modules(model):
        state[f"{_PREFIX}{path}.lora_A.weight"] = module.lora_A.detach()
        state[f"{_PREFIX}{path}.lora_B.weight"] = module.lora_B.detach()
    if not state:
        raise ValueError("the model has no LoRA adapter to save")
    for head in _heads(model):
        for name, tensor in model.get_submodule(head).state_dict().items():
            state[f"{_PREFIX}{head}.{name}"] = tensor.detach()
    return state


def _heads(model: nn.Module) -> list[str]:
    """The head; of a model with numeric features both, since the unused one is new and in no base either."""
    return [name for name in (HEAD, TABULAR_HEAD) if getattr(model, name, None) is not None]


def save_adapter(model: nn.Module, folder: Path, *, base: str) -> None:
    """Write the adapter of `model` into `folder`; `base` is the base model's name or folder."""
    state = adapter_state(model)
    modules = dict(lora_modules(model))
    first = next(iter(modules.values()))
    rank = Counter(module.rank for module in modules.values()).most_common(1)[0][0]
    alpha = Counter(module.alpha for module in modules.values()).most_common(1)[0][0]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": first.dropout.p,
        "use_rslora": first.rslora,
        "rank_pattern": {path: module.rank for path, module in modules.items() if module.rank != rank},
        "alpha_pattern": {path: _whole(module.alpha) for path, module in modules.items() if module.alpha != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(modules),
        "modules_to_save": _heads(model),
    }
    write_bytes(folder / WEIGHTS_FILE, save({key: tensor.contiguous() for key, tensor in state.items()}, {"format": "pt"}))
    write_json(folder / CONFIG_FILE, config)


def _whole(number: float) -> int | float:
    """An int where it is one: PEFT declares lora_alpha an int."""
    return int(number) if float(number).is_integer() else number


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Add the adapter of `folder`, ours or PEFT's, to a base `model`, head included; all else is frozen.

    Raises:
        UsageError: files missing or broken, a kind of adapter that is not plain LoRA, keys or shapes that do not fit.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a JSON object; it is not an adapter's configuration")
    _check_plain(config, path)
    try:
        _inject(model, config)
    except (KeyError, ValueError, TypeError, re.error) as error:
        raise UsageError(f"{path} does not fit this model: {error}") from error
    _load_state(model, folder / WEIGHTS_FILE)


def _check_plain(config: dict[str, Any], path: Path) -> None:
    for key, plain in _PLAIN.items():
        if config.get(key, plain) != plain:
            raise UsageError(f"{path}: {key} is {config[key]!r}; only {plain!r} can be loaded")
    for key in _MUST_BE_UNSET:
        if config.get(key):
            raise UsageError(f"{path}: {key} is {config[key]!r}; only plain LoRA without it can be loaded")
    if config.get("init_lora_weights", True) not in _KEEPS_THE_BASE:
        raise UsageError(
            f"{path}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base weights; "
            "convert the adapter with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    foreign = sorted(set(config.get("modules_to_save") or []) - {HEAD, TABULAR_HEAD, "score"})
    if foreign:
        raise UsageError(f"{path}: modules_to_save has {foreign}; only the head, {HEAD!r} or 'score', can be loaded")


def _inject(model: nn.Module, config: dict[str, Any]) -> None:
    """Wrap the modules that the configuration means, each with its own rank and alpha."""
    if next(lora_modules(model), None) is not None:
        raise ValueError("the model has LoRA adapters already; merge or reload it before adding others")
    paths = target_paths(model, config)
    model.requires_grad_(False)
    for path in paths:
        rank = _by_pattern(config.get("rank_pattern"), path, config["r"])
        module = LoraLinear(
            model.get_submodule(path),  # type: ignore[arg-type]  # `target_paths` names linear layers only
            rank=int(rank) if isinstance(rank, float) and rank.is_integer() else rank,
            alpha=float(_by_pattern(config.get("alpha_pattern"), path, config["lora_alpha"])),
            dropout=float(config.get("lora_dropout", 0.0)),
            rslora=bool(config.get("use_rslora", False)),
        )
        model.set_submodule(path, module)
    head_of(model).requires_grad_(True)


def _by_pattern(patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that fits the end of `path`; as in PEFT, a pattern is a regular expression."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def target_paths(model: nn.Module, config: dict[str, Any]) -> list[str]:
    """Paths of the linear layers that a PEFT configuration adapts, in the order of the model.

    `target_modules` is a list of paths or of their ends, a regular expression over whole paths, or "all-linear".

    Raises:
        ValueError: nothing is chosen. A target that fits nothing beside others that do is left out, as in PEFT.
    """
    linears = select_linears(model, ["*"], None)
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = linears
    layers = None if isinstance(targets, str) else _layer_numbers(config)  # PEFT: a regular expression is the whole choice
    chosen = [
        path
        for path in linears
        if _fits(targets, path) and not _fits(excluded, path) and (layers is None or _layer_of(path, config) in layers)
    ]
    if not chosen:
        raise ValueError(f"target_modules {config['target_modules']!r} and layers {layers} choose no linear layer")
    return chosen


def _fits(targets: str | list[str], path: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith("." + target) for target in targets)


def _layer_numbers(config: dict[str, Any]) -> list[int] | None:
    layers = config.get("layers_to_transform")
    return [layers] if isinstance(layers, int) else layers or None


def _layer_of(path: str, config: dict[str, Any]) -> int | None:
    """The number after the first `layers_pattern` of `path`; without a pattern, the first number."""
    patterns = config.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path):
            return int(match[1])
    return None


def _load_state(model: nn.Module, path: Path) -> None:
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    wanted = adapter_state(model)
    head = [key for key in wanted if ".lora_" not in key]
    if any(key not in found for key in head):
        raise UsageError(f"{path} lacks the classification head ({', '.join(head)}); train it again with its head saved")
    different = sorted(
        key
        for key in set(wanted) | set(found)
        if key not in wanted or key not in found or wanted[key].shape != found[key].shape
    )
    if different:
        raise UsageError(f"{path} does not fit its adapter_config.json: {', '.join(different[:6])}")
    for key, tensor in wanted.items():
        tensor.copy_(found[key])


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter rather than a whole model."""
    return (folder / CONFIG_FILE).exists()


def adapter_bytes(folder: Path) -> int:
    """Size of the adapter's weights file."""
    return (folder / WEIGHTS_FILE).stat().st_size


def base_name(folder: Path) -> str:
    """The base model that the adapter was trained on. Raises `UsageError` when the configuration does not say."""
    name = read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    if not name:
        raise UsageError(f"{folder / CONFIG_FILE} has no base_model_name_or_path; the base model is unknown")
    return str(name)

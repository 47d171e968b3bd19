"""LoRA adapters on disk, in PEFT's own format: ours load in PEFT, with the head.

    adapter_config.json          rank, alpha, dropout, exact module paths, the base model
    adapter_model.safetensors    lora_A and lora_B of each module, and the classification head

Key names: https://github.com/huggingface/peft/blob/v0.17.0/src/peft/utils/save_and_load.py
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from contract.command import UsageError
from contract.files import read_json, write_bytes, write_json
from training.lora import HEAD, inject_lora, lora_modules

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors under PEFT's names. Raises ValueError when the model has no adapter."""
    state: dict[str, Tensor] = {}
    for path, module in lora_modules(model):
        state[f"{_PREFIX}{path}.lora_A.weight"] = module.lora_A.detach()
        state[f"{_PREFIX}{path}.lora_B.weight"] = module.lora_B.detach()
    if not state:
        raise ValueError("the model has no LoRA adapter to save")
    for name, parameter in model.get_submodule(HEAD).named_parameters():
        state[f"{_PREFIX}{HEAD}.{name}"] = parameter.detach()
    return state


def save_adapter(model: nn.Module, folder: Path, *, base: str) -> None:
    """Write the adapter of `model` into `folder`; `base` is the base model's name or folder."""
    modules = dict(lora_modules(model))
    state = adapter_state(model)
    first = next(iter(modules.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout.p,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(modules),
        "modules_to_save": [HEAD],
    }
    write_bytes(folder / WEIGHTS_FILE, save({key: tensor.contiguous() for key, tensor in state.items()}, {"format": "pt"}))
    write_json(folder / CONFIG_FILE, config)


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Add the adapter of `folder` to a base `model`, head included.

    Raises:
        UsageError: files missing or broken, a kind of adapter that is not plain LoRA, keys or shapes that do not fit.
    """
    config = read_json(folder / CONFIG_FILE)
    plain_lora = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "alpha_pattern": {}}
    for key, plain in plain_lora.items():
        if config.get(key, plain) != plain:
            raise UsageError(f"{folder / CONFIG_FILE}: {key} is {config[key]!r}; only {plain!r} can be merged")
    try:
        inject_lora(
            model,
            config["target_modules"],
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config["lora_dropout"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{folder / CONFIG_FILE} does not fit this model: {error}") from error
    _load_state(model, folder / WEIGHTS_FILE)


def _load_state(model: nn.Module, path: Path) -> None:
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    wanted = adapter_state(model)
    head = [key for key in wanted if key.startswith(_PREFIX + HEAD + ".")]
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

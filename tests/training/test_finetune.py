"""`training.finetune`, the command: what it writes, what it refuses, what it leaves behind when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from safetensors.torch import load_file

from contract.command import Failure, UsageError, run_command
from contract.files import read_json, sha256_of
from tests.fixtures import TINY_RUN
from tests.tiny import tiny_texts
from tests.training.tiny_runs import options
from training.batches import encode
from training.checkpoint import load_checkpoint, read_heldout
from training.datasets import read_dataset
from training.evaluation import evaluate
from training.finetune import Finetune, finetune
from training.split import Split, hash_rows, split_dataset

FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "heldout.jsonl",
    "metrics.jsonl",
    "predictions.jsonl",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m training.finetune`, as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "training.finetune", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def parts_of(data: Path, **changes: Any) -> tuple[list[str], Split]:
    """The texts of the tiny data set and its split, computed apart from the command."""
    dataset = read_dataset("csv", data=data, text="sentence", label="kind", drop_empty=False, seed=0)
    shares: dict[str, Any] = {"validation_share": 0.1, "test_share": 0.2, "train_rows": None, "seed": 0}
    return dataset.texts, split_dataset(dataset, **(shares | changes))


def test_the_checkpoint_has_its_files_and_nothing_else(finetuned: Path) -> None:
    assert sorted(path.name for path in finetuned.iterdir()) == FILES
    assert [path.name for path in finetuned.parent.iterdir()] == ["checkpoint"]


def test_a_model_of_random_weights_learns_the_tiny_task(finetuned: Path) -> None:
    run = read_json(finetuned / "run.json")
    assert run["test"]["accuracy"] >= 0.9
    assert run["epochs"][-1]["train_loss"] < 0.5 * run["epochs"][0]["train_loss"]


def test_the_run_describes_options_base_data_epochs_and_versions(finetuned: Path, tiny_base: Path, tiny_csv: Path) -> None:
    run = read_json(finetuned / "run.json")
    assert run["configuration"].items() >= (TINY_RUN | {"data": str(tiny_csv), "base": str(tiny_base), "seed": 0}).items()
    assert run["configuration"].keys() == set(Finetune.__dataclass_fields__)
    assert run["base"] == {"source": str(tiny_base), "sha256": sha256_of(tiny_base / "model.safetensors")}
    assert (run["data"]["name"], run["data"]["labels"]) == ("sentences", ["animal", "plant"])
    assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2, 3, 4]
    losses = [epoch["validation"]["loss"] for epoch in run["epochs"]]
    assert [epoch["best"] for epoch in run["epochs"]] == [loss == min(losses[: n + 1]) for n, loss in enumerate(losses)]
    assert run["versions"]["torch"] == version("torch")
    assert run["machine"]["threads"] == 1


def test_the_run_names_each_part_by_rows_and_hash(finetuned: Path, tiny_csv: Path) -> None:
    dataset = read_dataset("csv", data=tiny_csv, text="sentence", label="kind", drop_empty=False, seed=0)
    _, split = parts_of(tiny_csv)
    assert read_json(finetuned / "run.json")["data"]["parts"] == {
        "train": {"rows": 112, "sha256": hash_rows(dataset, split.train)},
        "validation": {"rows": 16, "sha256": hash_rows(dataset, split.validation)},
        "test": {"rows": 32, "sha256": hash_rows(dataset, split.test)},
    }


def test_the_heldout_part_is_the_test_part_and_disjoint_from_training(finetuned: Path, tiny_csv: Path) -> None:
    texts, split = parts_of(tiny_csv)
    heldout = [row["text"] for row in read_heldout(finetuned)]
    assert heldout == [texts[row] for row in split.test]
    assert not set(heldout) & {texts[row] for row in split.train + split.validation}
    assert Counter(row["label"] for row in read_heldout(finetuned)) == {"animal": 16, "plant": 16}


def test_the_reported_test_metrics_are_those_of_the_saved_checkpoint(finetuned: Path) -> None:
    checkpoint, rows = load_checkpoint(finetuned), list(read_heldout(finetuned))
    encoded = encode(
        checkpoint.tokenizer, [row["text"] for row in rows], [checkpoint.labels.index(row["label"]) for row in rows]
    )
    metrics = evaluate(checkpoint.model, encoded, tokens_per_batch=96, dtype=torch.float32, progress="")
    reported = read_json(finetuned / "run.json")["test"]
    assert metrics.loss == pytest.approx(reported["loss"], abs=1e-5)
    assert (metrics.accuracy, metrics.samples) == (reported["accuracy"], 32)


def test_the_share_of_truncated_training_texts_is_told(finetuned: Path, tiny_csv: Path) -> None:
    texts, split = parts_of(tiny_csv)
    too_long = sum(len(texts[row].split()) > 16 - 2 for row in split.train)  # single letters and words are one token each
    assert 0 < too_long < 112
    assert read_json(finetuned / "run.json")["data"]["truncated_share"] == pytest.approx(too_long / 112)


def test_the_same_options_give_the_same_adapter_and_another_seed_another(
    finetuned: Path, tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        finetune(options(tmp_path / name, tiny_csv, tiny_base, seed=seed))
    first, same, other = (sha256_of(folder / FILES[1]) for folder in (finetuned, tmp_path / "same", tmp_path / "other"))
    assert first == same != other
    assert (finetuned / "heldout.jsonl").read_bytes() == (tmp_path / "same" / "heldout.jsonl").read_bytes()
    assert (finetuned / "heldout.jsonl").read_bytes() != (tmp_path / "other" / "heldout.jsonl").read_bytes()


def test_targets_layers_and_a_cap_on_the_rows_are_heeded(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    changes = {"targets": ("query",), "layers": (1,), "train_rows": 20, "epochs": 1, "rank": 2, "lora_dropout": 0.25}
    finetune(options(tmp_path / "new" / "deep", tiny_csv, tiny_base, **changes))
    tensors = load_file(tmp_path / "new" / "deep" / FILES[1])
    path = "base_model.model.bert.encoder.layer.1.attention.self.query"
    assert {name for name in tensors if "lora" in name} == {f"{path}.lora_A.weight", f"{path}.lora_B.weight"}
    assert read_json(tmp_path / "new" / "deep" / "adapter_config.json")["lora_dropout"] == 0.25
    assert read_json(tmp_path / "new" / "deep" / "run.json")["data"]["parts"]["train"]["rows"] == 20


def test_every_setting_of_the_training_reaches_it(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"alpha": 3.0},
        {"lora_dropout": 0.3},
        {"dropout": 0.3},
        {"max_length": 9},
        {"learning_rate": 5e-3},
        {"weight_decay": 0.5},
        {"warmup_share": 0.5},
        {"tokens_per_batch": 60},
        {"precision": "bf16"},
        {"validation_share": 0.4},
        {"test_share": 0.4},
        {"rslora": True},
        {"schedule": "constant"},
        {"batch_rows": 3},
        {"max_positions": 16, "max_length": 12},
        {"heads": (2, 8)},
    ]
    adapters = []
    for number, change in enumerate(changes):
        finetune(options(tmp_path / str(number), tiny_csv, tiny_base, **({"epochs": 1, "train_rows": 60} | change)))
        adapters.append(sha256_of(tmp_path / str(number) / FILES[1]))
    assert len(set(adapters)) == len(changes), list(zip(changes, adapters, strict=True))
    assert read_json(tmp_path / "3" / "config.json")["hidden_dropout_prob"] == 0.3
    assert read_json(tmp_path / "3" / "config.json")["attention_probs_dropout_prob"] == 0.3


def test_a_relative_base_is_stored_so_that_another_folder_finds_it(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_base.parent)
    finetune(options(tmp_path / "new", tiny_csv, Path("tiny-bert"), epochs=1, train_rows=8))
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint(tmp_path / "new").labels == ["animal", "plant"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_length": 41}, "--max-length is 41; the model reads at most 40 tokens"),
        ({"max_positions": 41}, "--max-positions is 41; .*tiny-bert has 40 position embeddings to keep some of"),
        ({"max_positions": 15}, "--max-length is 16; the model reads at most 15 tokens"),
        ({"heads": (4,)}, r"config\.json: num_attention_heads has 1 numbers for 2 layers"),
        ({"heads": (4, 5)}, r"config\.json: hidden_size \(32\) must be divisible by num_attention_heads \(\(4, 5\)\)"),
        ({"strategy": "last", "k": 3}, "--strategy last .* k is 3; the model has 2 layers, so that 1 to 2 can train"),
        ({"strategy": "scratch", "scratch_size": (32, 1, 5, 64)}, r"--scratch-size \(32, 1, 5, 64\): hidden_size \(32\)"),
        ({"tabular": True}, "--tabular needs --dataset stackoverflow or stackoverflow5; csv has no numeric features"),
        ({"strategy": "full", "cache_prefix": True}, "--cache-prefix needs a frozen layer below the lowest trained one"),
        ({"strategy": "first", "cache_prefix": True}, "the model has 0 such layers, and 1 process"),
        ({"targets": ("er",)}, "--targets or --layers: LoRA target 'er' fits no linear layer"),
        ({"targets": ()}, "--targets or --layers: .* choose no linear layer"),
        ({"layers": (2,)}, r"--targets or --layers: LoRA layers \[2\]"),
        ({"base": "./no-such-base"}, "the base folder ./no-such-base does not exist"),
        ({"data": Path("nothing.csv")}, r"the data file nothing\.csv does not exist"),
        ({"text": "body"}, "has no column 'body'; it has 'sentence', 'kind'"),
        ({"label": "sentence"}, "the same column"),
    ],
)
def test_a_wrong_call_leaves_no_folder(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        finetune(options(tmp_path / "new", tiny_csv, tiny_base, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_diverges_is_a_failure_and_leaves_no_folder(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"the loss or a gradient is (nan|inf) at batch"):
        finetune(options(tmp_path / "new", tiny_csv, tiny_base, learning_rate=1e38))
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_writes_a_checkpoint(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY_RUN | {"epochs": 1, "threads": 1}).items()]
    done = command(
        *flags,
        "--data",
        str(tiny_csv),
        "--base",
        str(tiny_base),
        "--targets",
        "query",
        "value",
        "--output",
        str(tmp_path / "new"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "new" / "run.json").read_text())["configuration"]["targets"] == ["query", "value"]
    assert "LoRA rank 4 on 4 linear layers, and the head" in done.stdout
    assert f"wrote {tmp_path / 'new'}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rank", "0.2"], "--rank"),
        (["--rank", "0"], "error: --rank: LoRA rank is 0; it must be an integer of at least 1"),
        (["--strategy", "some"], "--strategy"),
        (["--no-such-option", "1"], "--no-such-option"),
        ([], "exists already; name another one, or remove it first"),
    ],
    ids=["rank 0.2", "rank 0", "unknown strategy", "unknown option", "existing output"],
)
def test_a_wrong_command_line_ends_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: finetune(tyro.cli(Finetune, args=["--output", str(tmp_path), *arguments])))
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert said in shown.err + shown.out
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    done = command("--output", str(tmp_path), "--rank", "0.2")
    assert done.returncode == 2
    assert "--rank" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_texts_under_the_tiny_vocabulary_have_no_unknown_words(finetuned: Path) -> None:
    """The other tests count tokens as words; this is why they may."""
    tokenizer = load_checkpoint(finetuned).tokenizer
    tokenizer.no_truncation()
    for text, _ in tiny_texts(160):
        encoding = tokenizer.encode(text)
        assert len(encoding.ids) == len(text.split()) + 2
        assert "[UNK]" not in encoding.tokens

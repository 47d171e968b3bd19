"""`training.options`: what is out of range is named, before anything is read; what is written comes back as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from tests.training.tiny_runs import options


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rank": 0}, "--rank: LoRA rank is 0; it must be an integer of at least 1"),
        ({"rank": 0.2}, r"--rank: LoRA rank is 0\.2; .* not a share of the weights"),
        ({"epochs": 0}, "--epochs is 0; it must be at least 1"),
        ({"tokens_per_batch": 0}, "--tokens-per-batch is 0; it must be at least 1"),
        ({"train_rows": 0}, "--train-rows is 0; it must be at least 1"),
        ({"max_length": 0}, "--max-length is 0; it must be at least 3"),
        ({"max_length": 2}, "--max-length is 2; it must be at least 3"),
        ({"lora_dropout": 1.0}, r"--lora-dropout is 1\.0; it must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"--dropout is -0\.1; it must be in \[0, 1\)"),
        ({"warmup_share": 2.0}, r"--warmup-share is 2\.0; it must be in \[0, 1\)"),
        ({"validation_share": 0.0}, r"--validation-share 0\.0 and --test-share 0\.2 must be above 0"),
        ({"test_share": 0.0}, r"--validation-share 0\.1 and --test-share 0\.0 must be above 0"),
        ({"validation_share": 0.5, "test_share": 0.5}, "sum below 1"),
        ({"learning_rate": 0.0}, r"--learning-rate 0\.0 and --save-every-s 300 must be above 0"),
        ({"save_every_s": 0}, r"--learning-rate 0\.01 and --save-every-s 0 must be above 0"),
        ({"mask_share": 0.0}, r"--mask-share: the trained share of each weight matrix is 0\.0; it must be above 0"),
        ({"mask_share": 1.5}, r"--mask-share: .* is 1\.5; it must be above 0 and at most 1"),
        ({"k": 0}, "--k is 0; it must be at least 1"),
        ({"batch_rows": 0}, "--batch-rows is 0; it must be at least 1"),
        ({"max_positions": 0}, "--max-positions is 0; it must be at least 1"),
        ({"strategy": "scratch", "heads": (2, 4)}, "--heads replaces the heads of a loaded base; scratch takes its own"),
        ({"strategy": "last", "layers": (1,)}, "--layers chooses where LoRA goes; the strategy last takes --k"),
        ({"strategy": "none", "cache_prefix": True}, "--cache-prefix serves later epochs"),
        ({"log_features": True}, "--log-features changes the numeric features, which only --tabular reads"),
        ({"seed": -1}, r"--seed -1 must be in \[0, 2\^32\), --threads 0 at least 0"),
        ({"threads": -1}, "--threads -1 at least 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan .* and all of them numbers"),
        ({"alpha": float("inf")}, "--alpha is inf; it must be a finite number"),
        ({"weight_decay": -1.0}, r"--weight-decay -1\.0 not below 0"),
    ],
)
def test_an_option_out_of_range_is_named_before_anything_is_read(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        options(Path("nowhere"), Path("nothing.csv"), Path("no-base"), **changes)


@pytest.mark.parametrize("output", [".", "/", "runs/.."])
def test_an_output_without_a_name_is_refused(output: str) -> None:
    with pytest.raises(UsageError, match=rf"--output is {re.escape(output)}; name a folder to make"):
        options(Path(output), Path("nothing.csv"), Path("no-base"))


def test_the_options_as_json_are_what_json_gives_back() -> None:
    """A continued run compares them: a tuple that came back as a list stopped every one."""
    values = options(Path("new"), Path("a.csv"), Path("base"), layers=(0, 1), heads=(2, 4)).to_json()
    assert json.loads(json.dumps(values)) == values
    assert (values["output"], values["layers"], values["targets"][0]) == ("new", [0, 1], "query")

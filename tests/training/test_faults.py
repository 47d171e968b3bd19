"""What goes wrong in a training run: a full disk, a loss that is no number. A clear error, and the last good state stays."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from contract.command import Failure, UsageError, run_command
from tests.training.tiny_runs import options, progress_of, result_of
from training.bert import BertPooler
from training.finetune import Finetune, finetune
from training.loop import EpochResult
from training.state import STATE_FILE, hold, load_state, save_state, state_folder

SETTINGS: dict[str, Any] = {"epochs": 3, "train_rows": 60, "dropout": 0.2}
SMALL = 6_000  # bytes; a state has more


@contextlib.contextmanager
def restored_limit() -> Iterator[Callable[[int], None]]:
    """Gives what limits the size of a file that this process writes, which stands in for a full disk; undone at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_of(folder: Path, data: Path, base: Path, **changes: Any) -> Finetune:
    return options(folder, data, base, **(SETTINGS | changes))


def fill_disk_after(run: Finetune, epoch: int) -> int:
    """The exit code of `run` when the disk is full once `epoch` is done; 0 is full from the start."""
    with restored_limit() as limit:

        def fill(result: EpochResult) -> None:
            if result.epoch == epoch:
                limit(SMALL)

        if epoch == 0:
            limit(SMALL)
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: finetune(run, on_epoch=fill))
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_a_disk_that_fills_up_while_a_state_is_saved_leaves_the_state_before_it(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, strategy=strategy)
    assert fill_disk_after(run, 1) == 1
    said = capsys.readouterr().err
    assert f"failed: cannot save the run to {state_folder(run.output) / STATE_FILE}" in said
    assert "the state saved before it is intact. Make room, and continue with --resume" in said
    assert "Traceback" not in said
    assert progress_of(run.output)[0] == 0, "the state is that before the first validation"
    assert [path.name for path in state_folder(run.output).glob(".*")] == []
    assert not run.output.exists()
    finetune(run_of(run.output, tiny_csv, tiny_base, strategy=strategy, resume=True))
    finetune(run_of(tmp_path / "whole", tiny_csv, tiny_base, strategy=strategy))
    assert result_of(run.output) == result_of(tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_a_disk_that_fills_up_while_the_checkpoint_is_written_leaves_none_and_can_be_continued(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, strategy=strategy)
    assert fill_disk_after(run, 3) == 1
    said = capsys.readouterr().err
    assert f"failed: cannot write {run.output}" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["run.training"]
    finetune(run_of(run.output, tiny_csv, tiny_base, strategy=strategy, resume=True))
    finetune(run_of(tmp_path / "whole", tiny_csv, tiny_base, strategy=strategy))
    assert result_of(run.output) == result_of(tmp_path / "whole")


def test_a_disk_that_is_full_from_the_start_is_a_failure_and_leaves_nothing(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fill_disk_after(run_of(tmp_path / "run", tiny_csv, tiny_base), 0) == 1
    assert "none was saved before it. Make room" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_that_does_not_fit_on_the_disk_is_a_failure_and_not_a_crash(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is mapped but not allocated would end the process by SIGBUS at the first write."""
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, strategy="last", cache_prefix=True)
    assert fill_disk_after(run, 0) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_is_a_failure_and_the_state_before_it_stays(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, learning_rate=1e38, save_every_s=1e-6)
    said = r"the loss or a gradient is (nan|inf) at batch \d+ of epoch 1/3; lower --learning-rate, or use --prec"
    with pytest.raises(Failure, match=said):
        finetune(run)
    assert not run.output.exists()
    assert progress_of(run.output) == (0, 1), "the step that gave no number was saved"


def test_a_gradient_that_is_no_number_under_a_finite_loss_never_reaches_the_state(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, strategy="head")

    def spoil(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, BertPooler) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.inf)

    hook = nn.modules.module.register_module_forward_hook(spoil)
    try:
        with pytest.raises(Failure, match="the loss or a gradient is nan at batch 1 of epoch 1/3"):
            finetune(run_of(tmp_path / "run", tiny_csv, tiny_base, strategy="full"))
    finally:
        hook.remove()
    assert list(tmp_path.iterdir()) == []
    finetune(run)
    assert run.output.exists()


def test_two_processes_cannot_train_into_one_output(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base)
    with hold(state_folder(run.output)), pytest.raises(UsageError, match=r"another process trains in .*run\.training"):
        finetune(run)
    finetune(run)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_finished_run_of_other_options_is_not_taken_for_this_one(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    finetune(run_of(tmp_path / "run", tiny_csv, tiny_base))
    with pytest.raises(UsageError, match=r"finished run of other options: learning_rate was .*, is 0\.5"):
        finetune(run_of(tmp_path / "run", tiny_csv, tiny_base, learning_rate=0.5, resume=True))


def test_lora_is_refused_on_a_base_whose_pooler_would_be_lost(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tensors = {name: value for name, value in load_file(base / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(UsageError, match=r"has no bert\.pooler\.dense\.bias, .* does not store what was drawn"):
        finetune(run_of(tmp_path / "run", tiny_csv, base))
    finetune(run_of(tmp_path / "last", tiny_csv, base, strategy="last"))


def test_the_old_state_is_intact_after_a_save_that_failed(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    save_state(path, {"a": torch.ones(3)}, {"done": 1})
    with restored_limit() as limit, pytest.raises(Failure, match="the state saved before it is intact"):
        limit(SMALL)
        save_state(path, {"a": torch.ones(100_000)}, {"done": 2})
    tensors, values = load_state(path)
    assert (tensors["a"].tolist(), values) == ([1.0] * 3, {"done": 1})
    assert [found.name for found in tmp_path.iterdir()] == [STATE_FILE]


def test_a_state_with_a_figure_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        save_state(tmp_path / STATE_FILE, {}, {"seconds": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_its_header_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / STATE_FILE)
    with pytest.raises(UsageError, match="is not a training state"):
        load_state(tmp_path / STATE_FILE)

"""A run that a signal stopped, anywhere, is continued to the same bits; and every reason not to continue is named.

Dropout is on in these runs, so that a random number drawn twice or never would show in the weights.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.command import UsageError
from contract.files import read_json
from tests.training.tiny_runs import options, progress_of, python, result_of, signalled
from training.evaluation import EVALUATION_FACTOR
from training.finetune import Finetune, finetune
from training.loop import EpochResult
from training.record import check_same
from training.state import STATE_FILE, Interrupted, StopSignals, load_state, save_state, state_folder

SETTINGS: dict[str, Any] = {"epochs": 3, "train_rows": 60, "dropout": 0.2, "lora_dropout": 0.2, "tokens_per_batch": 96}
STRATEGIES: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"strategy": "full"},
    "masked": {"strategy": "masked"},
    "last, cached prefix": {"strategy": "last", "cache_prefix": True},
}


def run_of(folder: Path, data: Path, base: Path, **changes: Any) -> Finetune:
    return options(folder, data, base, **(SETTINGS | changes))


def stop_at(run: Finetune, *, forward: int, training: bool, number: int = signal.SIGTERM) -> None:
    """Start or continue `run` and stop it there."""
    with pytest.raises(SystemExit) as stop, signalled(number, forward=forward, training=training):
        finetune(run)
    assert stop.value.code == 128 + number
    assert not run.output.exists()
    assert {path.name for path in run.output.parent.iterdir()} <= {state_folder(run.output).name, "whole"}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_csv: Path) -> Callable[[str], Path]:
    """The uninterrupted run of each of `STRATEGIES`, made once."""
    folder, made = tmp_path_factory.mktemp("wholes"), set[str]()

    def whole(name: str) -> Path:
        if name not in made:
            made.add(name)
            finetune(run_of(folder / name, tiny_csv, tiny_base, **STRATEGIES[name]))
        return folder / name

    return whole


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_stopped_in_an_epoch_in_a_validation_and_twice_ends_with_the_same_bits(
    wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path, tmp_path: Path, name: str
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, resume=True, **STRATEGIES[name])
    if not run.cache_prefix:  # with it the model runs as a whole in evaluations alone
        stop_at(run, forward=4, training=True)
        assert progress_of(run.output) == (0, 4), "the step that ran was not finished, or another was started"
        stop_at(run, forward=1, training=True)
        assert progress_of(run.output) == (0, 5)
    stop_at(run, forward=1, training=False)
    assert progress_of(run.output)[0] == 0, "the validation was counted before it was done"
    stop_at(run, forward=2, training=False, number=signal.SIGINT)
    assert progress_of(run.output)[0] == 1
    finetune(run)
    assert result_of(run.output) == result_of(wholes(name))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_stopped_between_two_epochs_ends_with_the_same_bits(
    wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base)

    def stop(result: EpochResult) -> None:
        if result.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        finetune(run, on_epoch=stop)
    said = capsys.readouterr().out
    assert f"SIGTERM: the run is saved in {state_folder(run.output)}; continue it by the same command with --resume" in said
    finetune(run_of(tmp_path / "run", tiny_csv, tiny_base, resume=True))
    assert "continuing in epoch 2, after batch" in capsys.readouterr().out
    assert result_of(run.output) == result_of(wholes("lora"))


def test_a_run_stopped_in_its_test_ends_with_the_same_bits(
    wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, resume=True)
    assert SETTINGS["tokens_per_batch"] * EVALUATION_FACTOR > 6 * 16, "a validation of more than one batch"
    stop_at(run, forward=4, training=False)  # three validations of one batch, then the test
    finetune(run)
    assert result_of(run.output) == result_of(wholes("lora"))


def test_a_signal_before_anything_was_trained_leaves_nothing(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, strategy="none")
    with pytest.raises(SystemExit) as stop, signalled(signal.SIGTERM, forward=1, training=False):
        finetune(run)
    assert stop.value.code == 143
    assert "SIGTERM: nothing was trained yet, and nothing is kept" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_real_command_stops_with_143_and_continues_to_the_same_bits(
    wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    """`save_every_s` shows that training has begun; it may differ when a run is continued, as may the output's name."""
    changes: dict[str, Any] = {"threads": 1, "learning_rate": 1e-3}
    finetune(run_of(tmp_path / "whole", tiny_csv, tiny_base, **changes, epochs=25))
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, **changes, epochs=25, save_every_s=1e-6)
    state = state_folder(run.output) / STATE_FILE
    started = subprocess.Popen(python(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not state.exists() and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    out, errors = started.communicate(timeout=60)
    assert started.returncode == 143, errors
    assert "Traceback" not in errors
    assert f"SIGTERM: the run is saved in {state.parent}" in out
    assert not run.output.exists()
    finetune(run_of(tmp_path / "run", tiny_csv, tiny_base, **changes, epochs=25, resume=True))
    assert result_of(tmp_path / "run") == result_of(tmp_path / "whole")


def test_resume_starts_where_nothing_is_and_says_so_where_all_is_done(
    wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, resume=True)
    finetune(run)
    assert result_of(run.output) == result_of(wholes("lora"))
    before = (run.output / "run.json").stat().st_mtime_ns
    capsys.readouterr()
    state_folder(run.output).mkdir()  # as a kill just after the last rename leaves it
    finetune(run)
    assert capsys.readouterr().out == f"{run.output} is finished already\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (run.output / "run.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="run exists already; name another one"):
        finetune(run_of(tmp_path / "run", tiny_csv, tiny_base))


@pytest.fixture
def stopped(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> Finetune:
    """A run that was stopped after its third step."""
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, resume=True)
    stop_at(run, forward=3, training=True)
    return run


def test_without_resume_an_interrupted_run_is_refused_and_kept(stopped: Finetune, tiny_base: Path, tiny_csv: Path) -> None:
    state = state_folder(stopped.output)
    before = (state / STATE_FILE).read_bytes()
    with pytest.raises(UsageError, match=f"{state} holds an interrupted run; continue it with --resume, or remove that folder"):
        finetune(run_of(stopped.output, tiny_csv, tiny_base))
    assert (state / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.02}, r"learning_rate was 0\.01, is 0\.02\. Use the same again"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"epochs": 4, "rank": 2}, "rank was 4, is 2; epochs was 3, is 4"),
        ({"train_rows": 50}, "train_rows was 60, is 50; train rows was '"),
        ({"dropout": 0.0}, r"dropout was 0\.2, is 0\.0"),
    ],
)
def test_other_options_are_refused_by_name_and_the_state_is_kept(
    stopped: Finetune, tiny_base: Path, tiny_csv: Path, changes: dict[str, Any], named: str
) -> None:
    before = (state_folder(stopped.output) / STATE_FILE).read_bytes()
    with pytest.raises(UsageError, match=f"--resume cannot continue .*: {named}"):
        finetune(run_of(stopped.output, tiny_csv, tiny_base, **(changes | {"resume": True})))
    assert (state_folder(stopped.output) / STATE_FILE).read_bytes() == before


def test_other_data_and_another_base_are_refused(stopped: Finetune, tiny_base: Path, tmp_path: Path) -> None:
    for path in (Path(str(stopped.data)), tiny_base / "model.safetensors"):
        original = path.read_bytes()
        changed = original.replace(b"cat", b"dog") if path.suffix == ".csv" else original[:-1] + bytes([original[-1] ^ 1])
        path.write_bytes(changed)
        try:
            with pytest.raises(UsageError, match=r"(train rows|base sha256) was '[0-9a-f]+', is '[0-9a-f]+'"):
                finetune(stopped)
        finally:
            path.write_bytes(original)
    finetune(stopped)


def test_an_option_that_a_saved_state_does_not_know_had_its_default(
    stopped: Finetune, wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path
) -> None:
    path = state_folder(stopped.output) / STATE_FILE
    tensors, values = load_state(path)
    del values["identity"]["warmup_share"], values["identity"]["keep_head"]
    save_state(path, tensors, values)
    with pytest.raises(UsageError, match=r"warmup_share was 0\.06, is 0\.5"):
        finetune(run_of(stopped.output, tiny_csv, tiny_base, resume=True, warmup_share=0.5))
    finetune(stopped)
    assert result_of(stopped.output) == result_of(wholes("lora"))


def test_an_option_that_a_finished_run_does_not_know_had_its_default(
    wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path
) -> None:
    configuration = read_json(wholes("lora") / "run.json")["configuration"]
    del configuration["keep_head"]
    check_same(run_of(Path("run"), tiny_csv, tiny_base), configuration)
    with pytest.raises(UsageError, match="run is the finished run of other options: keep_head was False, is True"):
        check_same(run_of(Path("run"), tiny_csv, tiny_base, keep_head=True), configuration)


def test_what_changes_no_bit_may_differ(
    stopped: Finetune, wholes: Callable[[str], Path], tiny_base: Path, tiny_csv: Path
) -> None:
    finetune(run_of(stopped.output, tiny_csv, tiny_base, resume=True, save_every_s=1e-6))
    assert result_of(stopped.output) == result_of(wholes("lora"))


@pytest.mark.parametrize("content", [b"", b"torn", None], ids=["empty", "torn", "cut off"])
def test_a_damaged_state_is_refused_by_name(stopped: Finetune, content: bytes | None) -> None:
    path = state_folder(stopped.output) / STATE_FILE
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(UsageError, match=rf"{STATE_FILE} is not a training state .*; remove .*\.training and train again"):
        finetune(stopped)
    assert path.exists()


def test_what_a_kill_left_half_written_is_removed(stopped: Finetune) -> None:
    partial, state = stopped.output.with_name(".run.partial-0123abcd"), state_folder(stopped.output)
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    for name in (f".{STATE_FILE}.0123abcd", ".tmpAbCdEf"):  # ours, and that of safetensors
        (state / name).write_bytes(b"half")
    stop_at(stopped, forward=1, training=True)
    assert [path.name for path in state.iterdir() if path.name.startswith(".")] == []
    finetune(stopped)
    assert [path.name for path in stopped.output.parent.iterdir()] == ["run"]


def test_a_run_whose_folder_cannot_be_made_is_refused(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UsageError, match=rf"cannot make the folder {output}\.training"):
            finetune(run_of(output, tiny_csv, tiny_base))


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(2.5, dtype=torch.float64), "c": torch.get_rng_state()}
    values = {"done": 3, "results": [{"loss": 0.1 + 0.2}], "text": "ß"}
    save_state(tmp_path / STATE_FILE, tensors, values)
    found, again = load_state(tmp_path / STATE_FILE)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert again == json.loads(json.dumps(values)) == values


def test_a_signal_acts_at_once_unless_it_is_held() -> None:
    with StopSignals().caught() as stop:
        with pytest.raises(Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
        with stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_does_not_wait() -> None:
    with StopSignals().caught() as stop, stop.held():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)

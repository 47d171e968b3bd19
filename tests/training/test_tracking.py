"""`training.tracking` with the real libraries, offline: what was logged is read back out of what they wrote."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.command import Failure, UsageError
from contract.files import read_json_lines
from training.tracking import MetricsLog, Tracker, TrackerName, load_wandb_variables, open_tracker

CONFIGURATION: dict[str, Any] = {"rank": 8, "targets": ["query", "value"], "data": None}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine's own trackers, and no `.env` of the working directory."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # set again, so that monkeypatch takes away what the code sets
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.chdir(tmp_path)


def start(name: TrackerName, folder: Path) -> Tracker:
    """A run with the usual names."""
    return open_tracker(name, folder=folder, project="replay", run_name="lora-r8", configuration=CONFIGURATION)


def log_two_epochs(name: TrackerName, folder: Path, *, error: BaseException | None = None) -> None:
    """Log twice; then end the block by `error`, or well."""
    with start(name, folder) as tracker:
        tracker.log({"validation/loss": 0.5, "train_loss": 0.75}, step=1)
        tracker.log({"validation/loss": 0.25, "train_loss": 0.5}, step=2)
        if error is not None:
            raise error


def read_tensorboard(folder: Path) -> Any:
    """The accumulated events of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "lora-r8"))
    events.Reload()
    return events


def text_of(events: Any, tag: str) -> str:
    """A text that tensorboard keeps."""
    value: bytes = events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0]
    return value.decode()


def read_wandb(folder: Path) -> list[Any]:
    """The records of the one offline run in `folder`.

    wandb keeps no reader in Python. Its format is LevelDB's log: blocks of 32 KiB, in them parts of 4 bytes checksum, 2 bytes
    length, 1 byte kind (1 whole, 2 first, 3 middle, 4 last), behind a header of 7 bytes.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service may write the last bytes a moment after the run's end, and surely before its own
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    data, at, record, records = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:
            records.append(Record.FromString(record))
            record = b""
    return records


def test_tensorboard_holds_the_curves_the_configuration_and_the_end(tmp_path: Path) -> None:
    log_two_epochs("tensorboard", tmp_path)
    events = read_tensorboard(tmp_path)
    assert [(point.step, point.value) for point in events.Scalars("validation/loss")] == [(1, 0.5), (2, 0.25)]
    assert [(point.step, point.value) for point in events.Scalars("train_loss")] == [(1, 0.75), (2, 0.5)]
    assert "| targets | ['query', 'value'] |" in text_of(events, "configuration")
    assert text_of(events, "project") == "replay"
    assert text_of(events, "status") == "finished"


def test_mlflow_holds_the_curves_the_configuration_and_the_end(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    log_two_epochs("mlflow", tmp_path)
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("replay")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("lora-r8", "FINISHED")
    assert run.data.params == {"rank": "8", "targets": "['query', 'value']", "data": "None"}
    history = client.get_metric_history(run.info.run_id, "validation/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]


def test_a_second_mlflow_run_joins_the_experiment_where_the_variable_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    address = (tmp_path / "elsewhere").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    log_two_epochs("mlflow", tmp_path / "here")
    log_two_epochs("mlflow", tmp_path / "here")
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("replay")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert not (tmp_path / "here" / "mlruns").exists()


def test_an_mlflow_that_does_not_start_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://loft")
    with pytest.raises(Failure, match="mlflow does not start a run at carrier-pigeon://loft"):
        start("mlflow", tmp_path)


def test_wandb_is_offline_without_a_key_and_holds_the_run(tmp_path: Path) -> None:
    log_two_epochs("wandb", tmp_path)
    records = read_wandb(tmp_path)
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.display_name) == ("replay", "lora-r8")
    configuration = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert configuration.items() >= CONFIGURATION.items()
    histories = [record.history.item for record in records if record.HasField("history")]
    values = [{item.nested_key[0] or item.key: json.loads(item.value_json) for item in items} for items in histories]
    assert [(row["_step"], row["validation/loss"]) for row in values] == [(1, 0.5), (2, 0.25)]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def test_wandb_reads_env_but_never_over_the_environment_and_keeps_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(".env").write_text(f"WANDB_API_KEY={KEY}\nWANDB_PROJECT=from-env\nWANDB_LOG_MODEL=true\nFOREIGN=1\n")
    for name in ("WANDB_API_KEY", "WANDB_LOG_MODEL"):  # set and taken away, so that monkeypatch takes it away again
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")  # with a key the run would go to the server
    monkeypatch.setenv("WANDB_PROJECT", "from-the-shell")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    with start("wandb", tmp_path / "track") as tracker:
        tracker.log_checkpoint(checkpoint)
    assert os.environ["WANDB_API_KEY"] == KEY
    assert "FOREIGN" not in os.environ
    records = read_wandb(tmp_path / "track")
    assert [record.run.project for record in records if record.HasField("run")] == ["from-the-shell"]
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert (artifact.type, [entry.path for entry in artifact.manifest.contents]) == ("model", ["config.json"])
    written = b"".join(path.read_bytes() for path in (tmp_path / "track").rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert KEY not in "".join(capfd.readouterr())


def test_wandb_keeps_no_checkpoint_unasked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with start("wandb", tmp_path / "track") as tracker:
        tracker.log_checkpoint(tmp_path)
    assert not [record for record in read_wandb(tmp_path / "track") if record.HasField("artifact")]


@pytest.mark.parametrize(("value", "runs"), [("true", 0), ("1", 0), ("false", 1)])
def test_wandb_disabled_makes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, runs: int) -> None:
    monkeypatch.setenv("WANDB_DISABLED", value)
    log_two_epochs("wandb", tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == runs


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    log_two_epochs("none", tmp_path / "track")
    assert list(tmp_path.iterdir()) == []


def test_a_wandb_that_does_not_start_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.raises(Failure, match=r"wandb does not start a run(.|\n)*sideways(.|\n)*WANDB_MODE=offline does without"):
        start("wandb", tmp_path)


@pytest.mark.parametrize("error", [Failure("the loss is nan"), KeyboardInterrupt()], ids=["failure", "interrupt"])
@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_run_that_ends_by_an_exception_is_closed_as_failed(tmp_path: Path, name: TrackerName, error: BaseException) -> None:
    with pytest.raises(type(error)):
        log_two_epochs(name, tmp_path, error=error)
    if name == "tensorboard":
        events = read_tensorboard(tmp_path)
        assert text_of(events, "status") == "failed"
        assert len(events.Scalars("train_loss")) == 2
    elif name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient((tmp_path / "mlruns").as_uri())
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        assert [(run.info.status, run.data.metrics["train_loss"]) for run in runs] == [("FAILED", 0.5)]
    else:
        assert [record.exit.exit_code for record in read_wandb(tmp_path) if record.HasField("exit")] == [1]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_closing_twice_keeps_the_first_end(tmp_path: Path, name: TrackerName) -> None:
    with start(name, tmp_path) as tracker:
        tracker.close(failed=False)
    tracker.close(failed=True)
    if name == "tensorboard":
        assert text_of(read_tensorboard(tmp_path), "status") == "finished"


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_a_library_that_is_missing_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: TrackerName, package: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"--track {name} needs .* pip install --constraint constraints.txt {package}$"):
        start(name, tmp_path)


def test_an_env_file_needs_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("WANDB_PROJECT=x\n")
    monkeypatch.setitem(sys.modules, "dotenv", None)
    with pytest.raises(UsageError, match="python-dotenv"):
        load_wandb_variables()


def test_the_metrics_log_holds_a_line_an_epoch(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "loss": 0.25},
        {"test": {"loss": 0.3, "label": "grün"}},
    ]
    for row in rows:
        log.append(row)
        assert list(read_json_lines(tmp_path / "metrics.jsonl"))[-1] == row
    assert list(read_json_lines(tmp_path / "metrics.jsonl")) == rows


def test_a_resumed_metrics_log_repeats_no_epoch(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append({"epoch": 1, "loss": 0.5})
    resumed = MetricsLog(path)
    rows: list[dict[str, Any]] = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}, {"test": 1}]
    for row in [*rows, *rows]:
        resumed.append(row)
    assert list(read_json_lines(path)) == rows


@pytest.mark.parametrize("kept", range(1, 25))
def test_a_metrics_log_torn_at_any_byte_is_mended(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    for row in rows:
        MetricsLog(path).append(row)
    path.write_bytes(path.read_bytes()[:-kept])
    resumed = MetricsLog(path)
    for row in rows:
        resumed.append(row)
    assert list(read_json_lines(path)) == rows


def test_a_metrics_log_refuses_what_is_not_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"epoch": 1, "loss": float("nan")})
    assert not (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(UsageError, match="line 1 is not JSON"):
        MetricsLog(tmp_path / "metrics.jsonl")

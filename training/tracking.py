"""Where the figures of a training go beside the terminal: metrics.jsonl always, and one tracker of the ecosystem.

    --track tensorboard    event files in FOLDER/tensorboard/RUN; look with `tensorboard --logdir FOLDER/tensorboard`
    --track mlflow         FOLDER/mlruns, or where MLFLOW_TRACKING_URI points
    --track wandb          Weights & Biases, set up by its own variables, also out of a `.env` file in the working directory:
                           WANDB_API_KEY (none: the run stays offline, in FOLDER/wandb), WANDB_PROJECT, WANDB_DISABLED,
                           WANDB_LOG_MODEL (keep the checkpoint as an artifact)

The libraries are imported only when asked for. Nothing here reads a metric back or decides anything by it.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Self

from contract.command import Failure, UsageError
from contract.files import read_json_lines

TrackerName = Literal["none", "tensorboard", "wandb", "mlflow"]

METRICS_FILE = "metrics.jsonl"
_FALSE = ("", "0", "false", "no", "off")
_MLFLOW_LONGEST_VALUE = 6000  # characters of a parameter, by mlflow's own check


class Tracker:
    """One run in a tracker; this class itself is the tracker `none` and keeps nothing.

    As a context manager it closes the run whatever happens: finished when the block ends well, failed when it raises.
    """

    _closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def log(self, values: dict[str, float], step: int) -> None:
        """Add one point to each named curve."""

    def log_checkpoint(self, folder: Path) -> None:
        """Keep the checkpoint in `folder` beside the run, where the tracker was told to."""

    def close(self, failed: bool) -> None:
        """End the run, marked as failed or finished. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._close(failed)

    def _close(self, failed: bool) -> None:
        pass


def open_tracker(name: TrackerName, *, folder: Path, project: str, run_name: str, configuration: dict[str, Any]) -> Tracker:
    """Start a run.

    Args:
        folder: for what the tracker writes on this machine; made where it is missing.
        project: the experiment that the run belongs to; wandb's WANDB_PROJECT goes before it.
        configuration: kept with the run, as it is.

    Raises:
        UsageError: the tracker's library is not installed.
        Failure: the tracker does not start, for instance because its server refuses the key.
    """
    if name == "none":
        return Tracker()
    if name == "wandb":
        load_wandb_variables()
        if is_on("WANDB_DISABLED"):
            print("wandb: WANDB_DISABLED is set, so this run is not tracked")
            return Tracker()
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}
    return kinds[name](folder, project=project, run_name=run_name, configuration=configuration)


class _TensorBoard(Tracker):
    def __init__(self, folder: Path, *, project: str, run_name: str, configuration: dict[str, Any]) -> None:
        _library("tensorboard", package="tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard" / run_name))
        rows = [f"| {key} | {value} |" for key, value in configuration.items()]
        self._text("configuration", "\n".join(["| option | value |", "|---|---|", *rows]))
        self._text("project", project)

    def log(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def _close(self, failed: bool) -> None:
        self._text("status", "failed" if failed else "finished")
        self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        self._writer.add_text(tag, text)


class _Mlflow(Tracker):
    def __init__(self, folder: Path, *, project: str, run_name: str, configuration: dict[str, Any]) -> None:
        # mlflow asks for this word before it writes plain files; its other stores need a server or a data base.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or it would look for a network
        mlflow = _library("mlflow", package="mlflow-skinny")
        address = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri()
        self._entities = importlib.import_module("mlflow.entities")
        try:
            self._client = mlflow.MlflowClient(address)
            experiment = self._client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(project)
            self._run = self._client.create_run(number, run_name=run_name).info.run_id
        except mlflow.MlflowException as error:
            raise Failure(f"mlflow does not start a run at {address}: {error}") from error
        parameters = [self._entities.Param(key, str(value)[:_MLFLOW_LONGEST_VALUE]) for key, value in configuration.items()]
        self._client.log_batch(self._run, params=parameters)

    def log(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run, metrics=[self._entities.Metric(key, value, now, step) for key, value in values.items()]
        )

    def _close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class _Wandb(Tracker):
    def __init__(self, folder: Path, *, project: str, run_name: str, configuration: dict[str, Any]) -> None:
        self._wandb = _library("wandb", package="wandb")
        usual = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT") or project,
                name=run_name,
                dir=str(folder),
                mode=os.environ.get("WANDB_MODE") or usual,
                config=configuration,
            )
        except (self._wandb.Error, ValueError) as error:  # ValueError: a setting out of a variable
            raise Failure(f"wandb does not start a run: {error}; WANDB_MODE=offline does without its server") from error

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def log_checkpoint(self, folder: Path) -> None:
        if is_on("WANDB_LOG_MODEL"):
            artifact = self._wandb.Artifact(f"model-{self._run.id}", type="model")
            artifact.add_dir(str(folder))
            self._run.log_artifact(artifact)

    def _close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _library(name: str, *, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"--track {name} needs the package {package} ({error}): "
            f"python -m pip install --constraint constraints.txt {package}"
        ) from error


def load_wandb_variables() -> None:
    """Take wandb's variables out of `.env` in the working directory; what the environment has already stays.

    Other variables of the file are left alone: they are not ours to set.
    """
    path = Path(".env")
    if not path.is_file():
        return
    try:
        import dotenv
    except ImportError as error:
        raise UsageError(
            "reading .env needs the package python-dotenv: python -m pip install --constraint constraints.txt python-dotenv"
        ) from error
    for key, value in dotenv.dotenv_values(path).items():
        if key.startswith("WANDB_") and value is not None:
            os.environ.setdefault(key, value)


def is_on(variable: str) -> bool:
    """Whether an environment variable is set to anything but a no."""
    return os.environ.get(variable, "").lower() not in _FALSE


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, one line an epoch, each on the disk before `append` returns.

    Opening an existing file continues it: a last line that a kill tore is cut off, and an epoch that is there already is
    not written again, so that a resumed run repeats nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists():
            whole = path.read_bytes().rfind(b"\n") + 1
            os.truncate(path, whole)
        self._epochs = {row.get("epoch") for row in read_json_lines(path)} if path.exists() else set()

    def append(self, row: dict[str, Any]) -> None:
        """Write `row`, known by its `epoch`; a row without one, the test's, is written once too.

        Raises:
            ValueError: NaN or infinity, which are not JSON.
        """
        if row.get("epoch") in self._epochs:
            return
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._epochs.add(row.get("epoch"))

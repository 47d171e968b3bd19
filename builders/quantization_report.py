"""How a model was quantised, as JSON, Markdown and a picture: the sweep, the sensitivity of each product, what was left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builders.accuracy import Accuracy, compare_accuracy
from builders.parity import BOUNDS, Float32, margins
from contract.files import new_folder, write_bytes, write_json
from training.trained_int8 import TrainedInt8

HEAD = "| {} | mean logit error ± noise | labels that differ | accuracy, points ± noise | McNemar p |\n|---|---|---|---|---|"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to quantise, judged on the validation part."""

    name: str
    error: float
    """Mean absolute difference of the logits from fp32's."""
    error_noise: float
    """Standard error of that mean over the texts."""
    flips: float
    """Share of texts whose label is another one than fp32's, ties aside."""
    accuracy: Accuracy | None
    """None where the texts have no labels."""

    @property
    def passes(self) -> bool:
        """Whether the gate of a release would hold."""
        return self.flips <= BOUNDS["int8"].flips and not (self.accuracy and self.accuracy.failures)

    def cells(self) -> str:
        """Of a Markdown table."""
        error = f"{self.error:.4g} ± {self.error_noise:.1g}"
        if self.accuracy is None:
            return f"{self.name} | {error} | {self.flips:.2%} | - | -"
        change = 100 * (self.accuracy.engine - self.accuracy.checkpoint)
        return f"{self.name} | {error} | {self.flips:.2%} | {change:+.2f} ± {100 * self.accuracy.noise:.2f} | " + (
            f"{self.accuracy.p_value:.2g}"
        )


def judge_logits(name: str, ours: Float32, fp32: Float32, labels: Sequence[int]) -> Setting:
    """Logits [R, C] of a quantised graph beside fp32's; `labels` may be empty."""
    differs = (ours.argmax(1) != fp32.argmax(1)) & (margins(fp32) > BOUNDS["int8"].tie)
    errors = np.abs(ours - fp32).mean(1)
    return Setting(
        name=name,
        error=float(errors.mean()),
        error_noise=float(errors.std() / len(errors) ** 0.5),
        flips=float(differs.mean()),
        accuracy=compare_accuracy(ours, fp32, labels) if labels else None,
    )


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """How int8 was calibrated: everything that was tried."""

    calibration: str
    """Where the texts are from."""
    calibration_texts: int
    validation_texts: int
    sweep: list[Setting]
    """Everything quantised, by the percentile of the ranges."""
    chosen: str
    """The percentile that was taken."""
    sensitivity: dict[str, Setting]
    """One product quantised, by its exact node name; empty where it was not measured. On fewer texts than the sweep."""
    operators: dict[str, Setting]
    """The same with one operator quantised in every layer."""
    layers: dict[str, Setting]
    """The same with every product of one layer quantised."""
    sensitivity_texts: int
    """Texts of the validation part on which these three are measured."""
    steps: list[Setting]
    """The greedy exclusion: everything, then without the most sensitive product, and so on; the last one is the engine."""

    def markdown(self) -> str:
        """Tables for people."""
        most = sorted(self.sensitivity.values(), key=lambda setting: setting.error, reverse=True)[:10]
        lines = [
            f"int8, calibrated on {self.calibration_texts} texts of {self.calibration}, "
            f"judged on {self.validation_texts} of the validation part",
            "",
            HEAD.format("percentile"),
            *(f"| {setting.cells()} |" for setting in self.sweep),
            "",
            f"chosen: {self.chosen}. Products quantised step by step:",
            "",
            HEAD.format("products in int8"),
            *(f"| {setting.cells()} |" for setting in self.steps),
        ]
        if most:
            lines += ["", f"Sensitivity, on {self.sensitivity_texts} of these texts:"]
        for title, settings in (
            ("operator alone, all layers", self.operators.values()),
            ("layer alone, all its products", self.layers.values()),
            ("most sensitive products, each alone", most),
        ):
            if settings:
                lines += ["", HEAD.format(title), *(f"| {setting.cells()} |" for setting in settings)]
        return "\n".join(lines)

    def picture(self, path: Path) -> None:
        """Layers x operators, coloured by their error."""
        from matplotlib.figure import Figure

        places = [name.removeprefix("bert.encoder.layer.").removesuffix(".matmul").split(".", 1) for name in self.sensitivity]
        operators = list(dict.fromkeys(operator for _, operator in places))
        errors = np.zeros((1 + max(int(layer) for layer, _ in places), len(operators)))
        for (layer, operator), setting in zip(places, self.sensitivity.values(), strict=True):
            errors[int(layer), operators.index(operator)] = setting.error
        figure = Figure(figsize=(7, 1.5 + 0.4 * len(errors)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(errors, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(operators)), operators, rotation=20, ha="right")
        axes.set_yticks(range(len(errors)), [f"layer {number}" for number in range(len(errors))])
        axes.set_title("mean error of the logits with one matrix product in int8")
        figure.colorbar(image, ax=axes)
        figure.savefig(path, dpi=120, format="png")


@dataclass(frozen=True, kw_only=True)
class TrainedReport:
    """How int8 was trained for (`training.quantize_aware`), and what that changed."""

    trained: TrainedInt8
    validation_texts: int
    static: Setting
    """Static int8, before the training."""
    quantised: Setting
    """The graph of this build, with the trained weights and ranges."""
    change: Accuracy | None
    """The graph of this build beside static int8, in place of a checkpoint; None where the texts have no labels."""

    def markdown(self) -> str:
        """Tables for people."""
        facts = self.trained
        done = f"epoch {facts.epoch}" if facts.epoch else "no epoch, since none was better than static int8,"
        done += f" of training on {facts.trained_texts} texts"
        lines = [
            f"int8 with the ranges that the weights were trained with: percentile {facts.percentile}, observed on "
            f"{facts.calibration_texts} texts of {facts.origin}; {done}, "
            f"{facts.distillation:.0%} distillation. Judged beside the fp32 model on {self.validation_texts} texts of the "
            "validation part",
            "",
            HEAD.format("int8"),
            f"| {self.static.cells()} |",
            f"| {self.quantised.cells()} |",
            "",
        ]
        if self.change is None:
            return "\n".join([*lines, "the texts have no labels: no accuracy to compare"])
        change = self.change
        return "\n".join(
            [
                *lines,
                f"trained beside static int8: accuracy {change.engine:.2%} and {change.checkpoint:.2%}, {change.flips} labels "
                f"differ ({change.lost} lost, {change.won} won, McNemar p {change.p_value:.3g})",
            ]
        )


def write_report(folder: Path, report: QuantizationReport | TrainedReport) -> None:
    """Write quantization.json and .md, and of a calibration quantization.png. Raises UsageError when `folder` exists."""
    with new_folder(folder) as partial:
        values: dict[str, Any] = dataclasses.asdict(report)
        write_json(partial / "quantization.json", values)
        write_bytes(partial / "quantization.md", (report.markdown() + "\n").encode())
        if isinstance(report, QuantizationReport):
            report.picture(partial / "quantization.png")

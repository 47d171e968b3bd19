"""What a written engine says about itself: the part of a release's manifest that the engine's writer knows.

Every engine, for CPU or GPU, is written by a function that fills a folder and returns an `EngineRecord`;
`builders.build` puts it into the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One engine as it was written and proved."""

    kind: str
    """Runtime that opens the file: onnxruntime, openvino, torch or tensorrt."""
    precision: str
    """fp32, bf16, fp16, int8 or fp8: what the weights and matrix products are in."""
    layout: str = "padded"
    """`padded` ([B, T] and a mask) or `packed` (one row of tokens and its cumulative lengths)."""
    runtime: dict[str, str]
    """{"name": package of the runtime, "version": its version} at build time."""
    parity: dict[str, Any]
    """How far the engine is from its checkpoint, with the bounds (`builders.parity.Parity` as a dict)."""
    accuracy: dict[str, Any] = field(default_factory=dict)
    """Task accuracy beside the checkpoint's (`builders.accuracy.Accuracy` as a dict); empty where it cannot run here."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """What the engine was built for or measured on: CPU flags, or GPU name, compute capability and driver."""
    profiles: list[dict[str, Any]] = field(default_factory=list)
    """Shapes the engine was optimised for; empty where any shape is served."""

    @property
    def title(self) -> str:
        """As people read it, `onnxruntime int8`."""
        return f"{self.kind} {self.precision}" + (f" {self.layout}" if self.layout != "padded" else "")

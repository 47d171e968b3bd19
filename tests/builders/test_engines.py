"""`builders.engines`: which engines a machine is offered, what is refused, and that each one written is proved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.engines import KINDS, LANES, Source, find_kind, prove_files, runnable_kinds, write_cpu_engine, write_files
from builders.hardware import cpu_flags, describe_cpu, has_bf16
from builders.parity import BOUNDS, make_reference
from builders.repository import SOURCE, VERSION
from builders.served import engine_module
from contract.command import Failure, UsageError
from contract.files import read_json
from contract.tensors import ENGINE
from tests.tiny import random_bert, random_encoded, tiny_config

PLAIN = frozenset({"avx2"})
BF16 = frozenset({"avx2", "avx512_bf16"})
MODEL = random_bert(tiny_config(), seed=11, std=0.1)
REFERENCE = make_reference(MODEL, random_encoded(40, MODEL.config))


def no_int8() -> Any:
    raise UsageError("int8 was not asked for")


@pytest.mark.parametrize(
    ("engine", "precision", "flags", "said"),
    [
        ("onnxruntime", "bf16", BF16, "--engine onnxruntime has no --precision bf16; it takes fp32, int8"),
        ("onnxruntime", "fp8", BF16, "it takes fp32, int8"),
        ("openvino", "fp16", BF16, "--engine openvino has no --precision fp16; it takes fp32, bf16, int8"),
        ("openvino", "fp16", PLAIN, "it takes fp32, int8"),
        ("openvino", "bf16", PLAIN, "needs a processor with avx512_bf16 or amx_bf16, which this one has not"),
        ("torch", "bf16", PLAIN, "on this machine torch takes fp32"),
    ],
)
def test_a_precision_that_the_engine_or_the_machine_lacks_is_refused(
    engine: str, precision: str, flags: frozenset[str], said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        find_kind(engine, precision, flags)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.engine} {kind.precision}")
def test_every_kind_is_found_by_its_name_and_has_bounds(kind: Any) -> None:
    assert find_kind(kind.engine, kind.precision, BF16) is kind
    assert kind.precision in BOUNDS


def test_auto_tries_what_the_machine_can_run() -> None:
    assert [kind for kind in runnable_kinds(None, PLAIN) if kind.precision == "bf16"] == []
    assert {kind.engine for kind in runnable_kinds("bf16", BF16)} == {"openvino", "torch"}
    assert runnable_kinds(None, BF16) == list(KINDS)
    with pytest.raises(UsageError, match="--engine auto has no --precision bf16 for this machine; it takes fp32, int8"):
        runnable_kinds("bf16", PLAIN)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_written_engine_says_what_it_is_and_was_proved(tmp_path: Path, name: str) -> None:
    record = write_cpu_engine(tmp_path, find_kind(name, "fp32", PLAIN), Source(MODEL, no_int8), REFERENCE)
    assert (record.kind, record.precision, record.layout, record.title) == (name, "fp32", "padded", f"{name} fp32")
    assert record.parity["max_abs"] <= record.parity["bound"] == BOUNDS["fp32"].logits
    assert record.accuracy["flips"] == 0
    assert record.hardware == describe_cpu()
    settings = read_json(tmp_path / "engine.json")
    limits = (MODEL.config.vocab_size, MODEL.config.max_position_embeddings)
    assert (settings["kind"], settings["precision"], settings["vocab_size"], settings["positions"]) == (name, "fp32", *limits)
    assert settings.get("length_step") == (8 if name == "openvino" else None)
    assert settings.get("lanes", 1) == 1


@pytest.mark.skipif(not has_bf16(cpu_flags()), reason="this processor does not compute bf16")
def test_bf16_is_close_and_not_equal(tmp_path: Path) -> None:
    record = write_cpu_engine(tmp_path, find_kind("openvino", "bf16", cpu_flags()), Source(MODEL, no_int8), REFERENCE)
    assert 1e-4 < record.parity["max_abs"] <= record.parity["bound"]
    assert read_json(tmp_path / "engine.json")["lanes"] == LANES


def test_what_is_proved_is_what_the_lanes_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that answers wrongly keeps the engine out of a release, though the call on all cores is right."""
    kind = find_kind("openvino", "fp32", PLAIN)
    reference = make_reference(MODEL, random_encoded(64, MODEL.config, longest=MODEL.config.max_position_embeddings))
    write_files(tmp_path, kind, Source(MODEL, no_int8))
    module, real = engine_module(), engine_module().open_engine

    def with_wrong_lanes(folder: Path, threads: int) -> tuple[object, object]:
        engine, settings = real(folder, threads)
        wrong = [lambda ids, mask: np.zeros((len(ids), MODEL.config.num_labels), np.float32)] * LANES
        return engine._replace(most=module.LANE_TOKENS, lanes=module.Lanes(wrong)), settings

    assert prove_files(tmp_path, kind, reference)[1] == []
    monkeypatch.setattr(module, "open_engine", with_wrong_lanes)
    assert "logits differ by up to" in prove_files(tmp_path, kind, reference)[1][0]


def test_an_engine_of_other_weights_is_a_failure(tmp_path: Path) -> None:
    other = random_bert(MODEL.config, seed=12)
    with pytest.raises(Failure, match=r"no release was written:\n  logits differ by up to"):
        write_cpu_engine(tmp_path, find_kind("openvino", "fp32", PLAIN), Source(other, no_int8), REFERENCE)


def test_flags_are_read_from_cpuinfo_and_absent_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n\nprocessor\t: 1\n")
    assert cpu_flags(path) == {"fpu", "avx2", "amx_bf16", "amx_tile"}
    assert has_bf16(cpu_flags(path))
    assert (describe_cpu(path)["cpu"], describe_cpu(path)["flags"]) == ("A Processor", ["avx2", "amx_bf16"])
    assert cpu_flags(tmp_path / "none") == frozenset()
    assert not has_bf16(frozenset())


OPENS_ALONE = """
import importlib.util, json, sys, types
model, folder, *packages = sys.argv[1:]
sys.path += packages  # without their .pth files, one of which leads to the project
found = [name for name in ("contract", "training", "builders", "serving", "clients") if importlib.util.find_spec(name)]
assert not found, found
import numpy as np, pathlib
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
spec = importlib.util.spec_from_file_location("served_engine", model)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
engine, _ = module.open_engine(pathlib.Path(folder), 1)
rows = [np.arange(1, length, dtype=np.int32) for length in (3, 9, 4)]
print(json.dumps([logits.tolist() for logits in module.run_rows(engine, rows)]))
"""


def test_a_torch_engine_is_opened_where_the_project_cannot_be_imported(tmp_path: Path) -> None:
    write_files(tmp_path, find_kind("torch", "fp32", PLAIN), Source(MODEL, no_int8))
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    command = [sys.executable, "-I", "-S", "-c", OPENS_ALONE, str(SOURCE / ENGINE / VERSION / "model.py"), str(tmp_path)]
    done = subprocess.run([*command, *packages], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [torch.arange(1, length)[None] for length in (3, 9, 4)]
    with torch.no_grad():
        wanted = torch.cat([MODEL(row, torch.ones_like(row)) for row in rows]).numpy()
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=1e-5, rtol=0)

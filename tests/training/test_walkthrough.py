"""The notebook runs from its first cell to its last, on a tiny base, and shows what its text promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from contract.files import read_json

NOTEBOOK = Path("training/walkthrough.ipynb")


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def outputs_of(notebook: Any, kind: str) -> list[str]:
    """Everything that the cells gave in one MIME type, or printed (text)."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if kind == "text":
        return [output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"]
    return [output.data[kind] for output in outputs if output.output_type == "display_data" and kind in output.data]


def test_the_notebook_is_committed_without_outputs_and_valid() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_notebook_trains_three_strategies_and_draws_the_comparison(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"BASE": tiny_base, "ROWS": 24, "EPOCHS": 2, "OUTPUT": tmp_path / "walkthrough", "MAX_LENGTH": 40}
    for name, value in settings.items():
        monkeypatch.setenv(f"WALKTHROUGH_{name}", str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tiny matrices are slower on more
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))  # nothing of the user's own kernels and settings
    notebook = read_notebook()
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}})
    client.execute()

    printed = "".join(outputs_of(notebook, "text"))
    assert "120 texts of 5 libraries" in printed
    (table,) = outputs_of(notebook, "text/markdown")
    for name in ("head", "lora", "full"):
        run = read_json(tmp_path / "walkthrough" / name / "run.json")
        assert run["strategy"]["name"] == name
        assert len(run["epochs"]) == 2
        row = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
        assert f"{100 * run['test']['accuracy']:.2f} %" in row
        assert f"{run['strategy']['trainable']:,}" in row
    plots = outputs_of(notebook, "text/html")
    assert [re.findall(r"<h3>(.*)</h3>", plot) for plot in plots][2] == ["Quality against trainable parameters"]
    assert len(plots) == 5
    assert all("<svg" in plot and "lora" in plot for plot in plots)
    answers = dict(re.findall(r"^(\w+) +([\d.]+)%$", printed, flags=re.M))
    assert sorted(answers) == ["numpy", "pandas", "stdlib", "torch", "transformers"]
    assert sum(map(float, answers.values())) == pytest.approx(100, abs=0.3)

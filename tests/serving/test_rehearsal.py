"""The rehearsal: what a python model can do at its start, a crash and a hang too, is met in a process of its own."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest

from contract.command import Failure, UsageError
from contract.probes import Probes
from contract.release import read_manifest
from contract.tensors import ENGINE, STEPS, TOKENIZER
from serving import rehearsed
from serving.rehearsal import NICENESS, Rehearsal, check_rehearsal, rehearse, run_rehearsal
from serving.repository import Repository
from tests.served import deployed

PROBES = Probes(texts=["a", "b"], logits=[[1.0, 0.0], [0.0, 1.0]], bound=0.1, agreement=1.0)
GOOD = [[1.05, 0.0], [0.0, 0.95]]


@pytest.fixture
def placed(tmp_path: Path, release: Path) -> tuple[Repository, Path]:
    """A repository and a copy of a release in it that was not admitted."""
    repository = deployed(tmp_path)
    return repository, repository.copy_in(release, 1)


def test_a_good_release_answers_as_its_checkpoint_did(placed: tuple[Repository, Path], release: Path) -> None:
    repository, copy = placed
    rehearsal = rehearse(repository, 1, copy=copy)
    assert rehearsal.release == read_manifest(release).release
    assert Repository(copy).probes(1).failures(rehearsal.logits) == []
    assert set(rehearsal.seconds) == {*STEPS, "answers"}
    assert not list(copy.rglob("*.pyc"))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param("raise RuntimeError('no such device')", "RuntimeError: no such device", id="raises"),
        pytest.param("raise SystemExit(0)", "does not load or does not answer", id="exits"),
        pytest.param("import os; os.abort()", r"crashes the process that loads it \(signal 6\)", id="crashes"),
        pytest.param("import no_such_package", "No module named 'no_such_package'", id="misses a package"),
        pytest.param("def (", "SyntaxError: invalid syntax", id="is no python"),
        pytest.param("print('chatter')\nraise KeyError('x')", "KeyError: 'x'", id="prints"),
        pytest.param("TritonPythonModel = object", "has no attribute", id="is no model"),
    ],
)
def test_whatever_a_model_does_at_its_start_is_a_refusal(
    placed: tuple[Repository, Path], step: str, code: str, said: str
) -> None:
    repository, copy = placed
    model = copy / step / "1" / "model.py"
    model.write_text(f"{model.read_text(encoding='utf-8')}\n{code}\n", encoding="utf-8")
    with pytest.raises(Failure, match=said):
        rehearse(repository, 1, copy=copy)


def test_a_rehearsal_gives_way_to_the_server(placed: tuple[Repository, Path]) -> None:
    repository, copy = placed
    code = "import os\nraise RuntimeError(f'niceness {os.nice(0)}, own session {os.getsid(0) == os.getpid()}')\n"
    (copy / TOKENIZER / "1" / "model.py").write_text(code)
    with pytest.raises(Failure, match=f"niceness {min(os.nice(0) + NICENESS, 19)}, own session True"):
        rehearse(repository, 1, copy=copy)


def test_a_session_gives_way_where_the_kernel_groups_by_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsed, "AUTOGROUP", tmp_path / "autogroup")
    rehearsed.give_way(0)
    assert (tmp_path / "autogroup").read_text() == "0"
    monkeypatch.setattr(rehearsed, "AUTOGROUP", tmp_path / "absent" / "autogroup")
    rehearsed.give_way(0)


def test_a_model_that_hangs_is_given_up(placed: tuple[Repository, Path]) -> None:
    repository, copy = placed
    (copy / TOKENIZER / "1" / "model.py").write_text("import time\ntime.sleep(1000)\n")
    with pytest.raises(Failure, match="does not start and answer within 1 s"):
        run_rehearsal(
            copy,
            1,
            configs={step: repository.step_config(step) for step in STEPS},
            texts=["a"],
            packages=[],
            timeout_s=1,
        )


def test_a_plan_is_left_to_the_server(placed: tuple[Repository, Path]) -> None:
    repository, copy = placed
    (copy / ENGINE / "1" / "model.plan").touch()
    rehearsal = rehearse(repository, 1, copy=copy)
    assert (rehearsal.logits, set(rehearsal.seconds)) == ([], {TOKENIZER, "answers"})


def test_the_child_knows_the_standard_library_and_what_models_import() -> None:
    tree = ast.parse(Path(rehearsed.__file__).read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in found} - sys.stdlib_module_names == {"numpy"}


def test_the_child_has_all_of_the_backend_that_the_models_use() -> None:
    source = Path(__file__).resolve().parents[2] / "model_repository"
    module = rehearsed.backend_module()
    for path in source.glob("*/1/model.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pb_utils":
                assert hasattr(module, node.attr), f"{path} uses pb_utils.{node.attr}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"release": "other"}, "answers as other, its manifest says mine", id="name"),
        pytest.param({"installed": {"tokenizers": "0.22.9"}}, "tokenizers 0.23.3, installed is 0.22.9", id="runtime"),
        pytest.param({"logits": [[1.05, 0.0], [0.0, 0.8]]}, "logits are off by up to 0.2, allowed 0.1; first at 'b'", id="off"),
        pytest.param({"logits": [[float("nan"), 0.0], [0.0, 1.0]]}, "logits are off by up to inf", id="NaN"),
        pytest.param({"logits": [[1.0, 0.0]]}, r"answered with 1 rows of \[2\] logits, expected 2 rows", id="rows"),
        pytest.param({"logits": [[1.0, 0.0, 0.0]] * 2}, r"2 rows of \[3\] logits", id="classes"),
    ],
)
def test_a_rehearsal_that_is_not_as_it_should_be_is_refused(changes: dict[str, object], said: str) -> None:
    values: dict[str, object] = {"release": "mine", "logits": GOOD, "seconds": {}, "installed": {"tokenizers": "0.23.9"}}
    checked = {"release": "mine", "probes": PROBES, "versions": {"tokenizers": "0.23.3"}}
    check_rehearsal(Rehearsal(**values), **checked)  # type: ignore[arg-type]
    with pytest.raises(Failure, match=said):
        check_rehearsal(Rehearsal(**(values | changes)), **checked)  # type: ignore[arg-type]


def test_a_label_that_flips_within_the_bound_counts_against_the_agreement() -> None:
    close = Probes(texts=["a"], logits=[[0.02, 0.0]], bound=0.1, agreement=1.0)
    assert close.failures([[0.0, 0.02]]) == ["0.0% of the labels are the checkpoint's, wanted 100.0%"]


def test_a_release_without_probes_is_refused(placed: tuple[Repository, Path]) -> None:
    repository, copy = placed
    (copy / TOKENIZER / "1" / "probes.json").write_text(json.dumps({"texts": []}))
    with pytest.raises(UsageError, match="does not hold probe texts"):
        rehearse(repository, 1, copy=copy)

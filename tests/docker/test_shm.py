"""`python -m serving.shm` counts what the real server takes at most; the containers have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients import connect
from contract.command import UsageError
from contract.tensors import MAX_BATCH_SIZE, MAX_TEXT_BYTES
from serving.repository import Repository
from serving.shm import Shm, main, needed_bytes, regions
from serving.state import ServerState
from tests.docker.files import COMPOSE, MANIFESTS, ROOT, pod_spec, size_in_bytes

COMMITTED = ROOT / "model_repository"


@pytest.mark.server
def test_the_largest_batches_fit_into_what_is_counted(watched: ServerState, watched_repository: Repository) -> None:
    with connect(watched.grpc_url, timeout_s=120) as classifier:
        classifier.logits(["\0" * (MAX_TEXT_BYTES - 1) + "x"] * MAX_BATCH_SIZE)  # as large as can be, and quick to tokenize
    shm = Path("/dev/shm")  # noqa: S108 - POSIX shared memory
    taken = sum(path.stat().st_size for path in shm.glob(f"bert_{watched.pid}_*"))
    assert MAX_BATCH_SIZE * MAX_TEXT_BYTES < taken <= needed_bytes(watched_repository.path, "cpu", versions=1)


def test_the_containers_have_what_is_counted() -> None:
    needed = max(needed_bytes(COMMITTED, engine, Shm().versions) for engine in ("cpu", "tensorrt"))
    assert size_in_bytes(COMPOSE["services"]["server"]["shm_size"]) >= needed
    for name in ("deployment Deployment bert", "inferenceservice InferenceService bert"):
        (volume,) = [each for each in pod_spec(MANIFESTS[name])["volumes"] if each["name"] == "shm"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert size_in_bytes(volume["emptyDir"]["sizeLimit"]) >= needed


def test_a_plan_needs_none_and_versions_add_up() -> None:
    assert {region.model for region in regions(COMMITTED, "cpu")} == {"bert_tokenizer", "bert_engine"}
    assert {region.model for region in regions(COMMITTED, "tensorrt")} == {"bert_tokenizer"}
    assert needed_bytes(COMMITTED, "cpu", 3) == 3 * needed_bytes(COMMITTED, "cpu", 1)


def test_the_command_prints_the_line_for_compose(capsys: pytest.CaptureFixture[str]) -> None:
    main(Shm(repository=COMMITTED))
    assert f"shm_size: {needed_bytes(COMMITTED, 'cpu', Shm().versions)}" in capsys.readouterr().out


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--versions is 0"):
        Shm(repository=COMMITTED, versions=0)
    with pytest.raises(UsageError, match="which is no model repository"):
        Shm(repository=tmp_path)

"""Rehearse a release before a server meets it: its python models are started in a process of their own and must answer rightly.

A `load` that fails can take the server down with it: 2.51 segfaults now and then when a python model raises while it is
initialised. So what would fail has to fail here: a corrupt engine, another vocabulary, wrong weights, a missing package, a
crash. The answers to the release's own probe texts must be its checkpoint's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.command import Failure
from contract.probes import Probes
from contract.tensors import STEPS
from serving import rehearsed
from serving.repository import Repository

NICENESS = 5
"""Of the child beside a server: a quarter of a core where serving wants all of it. At 19 it would hardly run at all."""

TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What came of it."""

    release: str
    """Id that the tokenizer answers with."""
    logits: list[list[float]]
    """Of the probe texts; empty where the engine is a plan, which only the server's own backend can open."""
    seconds: dict[str, float]
    """Per step to start it, and for all answers."""
    installed: dict[str, str]
    """Versions of the packages asked for in the Python that the models run in; "" where one is absent."""


def run_rehearsal(
    copy: Path,
    version: int,
    *,
    configs: dict[str, dict[str, Any]],
    texts: list[str],
    packages: list[str],
    features: Sequence[list[float]] = (),
    niceness: int = NICENESS,
    timeout_s: float = TIMEOUT_S,
) -> Rehearsal:
    """Start the python models in `copy`/STEP/`version` and run `texts` through them.

    Args:
        copy: folder laid out as a repository.
        configs: of each step that a python model serves (`Repository.step_config`).
        features: numbers beside each text; none where the release reads text alone.

    Raises:
        Failure: a model does not start or does not answer; with its own words.
    """
    steps = [step for step in STEPS if configs[step] and not (copy / step / str(version) / "model.plan").exists()]
    order = {
        "version": str(version),
        "steps": [{"folder": str((copy / step).resolve()), "config": _on_one_thread(configs[step])} for step in steps],
        "texts": texts,
        "features": features,
        "packages": packages,
        "niceness": niceness,
    }
    return Rehearsal(**json.loads(_run(order, timeout_s)))


def rehearse(repository: Repository, version: int, *, copy: Path | None = None, niceness: int = NICENESS) -> Rehearsal:
    """Rehearse `version` where it lies in the repository, or in a copy that was not admitted yet.

    Args:
        niceness: 0 where no server has to be given way to.

    Raises:
        Failure: it does not start, crashes, is not what its manifest says, or does not give its checkpoint's answers.
    """
    placed = Repository(copy or repository.path)
    manifest, probes = placed.manifest(version), placed.probes(version)
    runtime = manifest["runtime"]
    versions = {"tokenizers": manifest["versions"]["tokenizers"], runtime["name"]: runtime["version"]}
    rehearsal = run_rehearsal(
        placed.path,
        version,
        configs={step: repository.step_config(step) for step in STEPS},
        texts=probes.texts,
        features=probes.features,
        packages=sorted(versions),
        niceness=niceness,
    )
    check_rehearsal(rehearsal, release=manifest["release"], probes=probes, versions=versions)
    return rehearsal


def check_rehearsal(rehearsal: Rehearsal, *, release: str, probes: Probes, versions: dict[str, str]) -> None:
    """Raise `Failure` unless the release answers under its own name, rightly, with runtimes no older than it was built with."""
    if rehearsal.release != release:
        raise Failure(f"the release answers as {rehearsal.release}, its manifest says {release}")
    older = [
        f"{package} {versions[package]}, installed is {installed}"
        for package, installed in rehearsal.installed.items()
        if installed and _minor(installed) < _minor(versions[package])
    ]
    if older:
        raise Failure(f"the release was built for another server, with {'; '.join(older)}; install that, or build it here")
    wrong = probes.failures(rehearsal.logits) if rehearsal.logits else []
    if wrong:
        raise Failure(f"the release does not give its checkpoint's answers: {'; '.join(wrong)}")


def _run(order: dict[str, Any], timeout_s: float) -> str:
    """What `serving.rehearsed`, in a process of its own, answers to an order."""
    command = [sys.executable, "-I", str(Path(rehearsed.__file__).resolve())]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            cwd="/",
            start_new_session=True,  # of which it lowers the priority
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"the release does not start and answer within {timeout_s:g} s") from error
    if done.returncode < 0:
        raise Failure(f"the release crashes the process that loads it (signal {-done.returncode}): {_last_words(done.stderr)}")
    if done.returncode or not done.stdout:  # a model that ends the process says nothing, with whatever code
        raise Failure(f"the release does not load or does not answer: {_last_words(done.stderr)}")
    return done.stdout


def _on_one_thread(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a step whose engine leaves the other cores to the traffic."""
    parameters = config.get("parameters", {})
    return config | {"parameters": parameters | ({"threads": {"string_value": "1"}} if "threads" in parameters else {})}


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _last_words(errors: str) -> str:
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it says nothing"

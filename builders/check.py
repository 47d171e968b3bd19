"""Say before a server does which versions it will load, and why not the others.

    python -m builders.check build/release --server 26.07 --gpu-compute-capability 8.9
    python -m builders.check build/model_repository --server 26.07

A release or a whole deployed repository; nothing is loaded, only files are read. Exit code 0 when every version loads, 2 when
one does not, or when it cannot be told: the table then says what must be stated, as `--tensorrt`, which the image prints when
it starts. What a CPU engine needs of the server's Python and processor no file tells: it "loads as assumed", exit code 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from builders.check_rules import (
    HEADER_BYTES,
    Finding,
    Server,
    check_config,
    check_features,
    check_gpu,
    check_header,
    check_python_engine,
    check_tensorrt_version,
)
from builders.containers import find_container, version_tuple
from builders.external_data import read_onnx
from builders.tensorrt_config import read_config
from contract.command import UsageError, run_command
from contract.files import read_json, sha256_of
from contract.release import MANIFEST_FILE
from contract.tensors import ENGINE, STEPS, TOKENIZER

ENGINE_FILES = {
    "tensorrt": ("model.plan",),
    "onnxruntime": ("model.py", "model.onnx"),
    "openvino": ("model.py", "model.xml", "model.bin"),
    "torch": ("model.py", "model.pt2"),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Say which versions a server will load, and why not the others."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Release folder, or deployed repository."""
    server: str
    """Tag of NVIDIA's tritonserver image, as 26.07."""
    tensorrt: str | None = None
    """TensorRT in that image, where the table is wrong or does not know it, as 11.3.0."""
    gpu_compute_capability: str | None = None
    """Of the GPU that will serve, as 8.9; without it the GPU is not checked."""

    def __post_init__(self) -> None:
        find_container(self.server)
        if self.tensorrt is not None:
            version_tuple(self.tensorrt)
        if self.gpu_compute_capability is not None and not re.fullmatch(r"\d{1,2}\.\d", self.gpu_compute_capability):
            raise UsageError(f"--gpu-compute-capability is {self.gpu_compute_capability!r}; write it as 8.9")


@dataclass(frozen=True)
class Version:
    """One version of the engine, wherever it lies."""

    name: str
    engine: Path
    manifest: Mapping[str, Any] | None
    files: Mapping[str, Path]
    """The manifest's names of the steps' files -> where they lie."""
    config: Mapping[str, Any] | None
    """The engine's; None for a release, which has none of its own."""

    @property
    def facts(self) -> dict[str, Any]:
        """What manifest and engine.json say of the engine; the latter knows more."""
        stated = read_json(self.engine / "engine.json") if (self.engine / "engine.json").exists() else {}
        return {**(self.manifest or {}), **stated}


def find_versions(folder: Path) -> list[Version]:
    """The version of a release, or all of a deployed repository. Raises UsageError for a folder that is neither."""
    if (folder / MANIFEST_FILE).is_file():
        manifest = read_json(folder / MANIFEST_FILE)
        files = {name: folder / name for name in manifest.get("files", {})}
        return [Version(str(manifest.get("release", folder.name)), folder / ENGINE, manifest, files, None)]
    if not (folder / ENGINE / "config.pbtxt").is_file():
        raise UsageError(f"{folder} is neither a release ({MANIFEST_FILE}) nor a deployed repository ({ENGINE}/config.pbtxt)")
    config = read_config(folder / ENGINE / "config.pbtxt")
    numbers = sorted(int(entry.name) for entry in (folder / ENGINE).iterdir() if entry.name.isdecimal())
    found = [_deployed(folder, number, config) for number in numbers if any((folder / ENGINE / str(number)).glob("[!.]*"))]
    if not found:
        raise UsageError(f"{folder} has no versions yet; python -m serving.releases publish brings one")
    return found


def _deployed(folder: Path, number: int, config: Mapping[str, Any]) -> Version:
    """A published version; its manifest lies beside the tokenizer or the engine, where there is one."""
    places = [folder / step / str(number) / MANIFEST_FILE for step in (TOKENIZER, ENGINE)]
    manifest = next((read_json(place) for place in places if place.is_file()), None)
    names = [name for name in (manifest or {}).get("files", {}) if name.partition("/")[0] in STEPS]
    files = {name: folder / name.replace("/", f"/{number}/", 1) for name in names}
    return Version(str(number), folder / ENGINE / str(number), manifest, files, config)


def examine(version: Version, server: Server) -> Finding:
    """Everything that the files tell about one version."""
    found, facts = Finding(), version.facts
    _check_files(version, found)
    if version.config is not None:
        check_features(facts, version.config, found)
    kind = facts.get("kind") or ("tensorrt" if (version.engine / "model.plan").exists() else "onnxruntime")
    missing = [name for name in ENGINE_FILES.get(kind, ()) if not (version.engine / name).is_file()]
    found.wrong += [f"{ENGINE} lacks {name}" for name in missing]
    if kind != "tensorrt":
        _check_graph(version.engine / "model.onnx", found)
        check_python_engine(facts, server, found)
    elif not missing:
        with (version.engine / "model.plan").open("rb") as file:
            check_header(file.read(HEADER_BYTES), found)
        check_tensorrt_version(facts, server, found)
        check_gpu(facts, server, found)
        if version.config is not None:
            check_config(facts, version.config, found)
    return found


def _check_files(version: Version, found: Finding) -> None:
    """Compare every file with the manifest's hash."""
    if version.manifest is None:
        found.notes.append("no manifest beside it, so its files were not compared")
        return
    for name, place in version.files.items():
        if not place.is_file():
            found.wrong.append(f"{name} is missing")
        elif sha256_of(place) != version.manifest["files"][name]:
            found.wrong.append(f"{name} was changed after it was built")


def _check_graph(path: Path, found: Finding) -> None:
    """Look into an ONNX file, where the engine has one."""
    try:
        if path.is_file():
            read_onnx(path)
    except UsageError as error:
        found.wrong.append(str(error))


def table(rows: list[tuple[Version, Finding]]) -> str:
    """One line a version, its reasons below it."""
    width = max(len("version"), *(len(version.name) for version, _ in rows))
    lines = [f"{'version':<{width}}  {'engine':<28}  verdict"]
    for version, found in rows:
        facts = version.facts
        engine = " ".join(str(facts[key]) for key in ("kind", "precision", "layout") if facts.get(key)) or "unnamed"
        lines.append(f"{version.name:<{width}}  {engine:<28}  {found.verdict}")
        lines += [f"{'':<{width}}  - {reason}" for reason in _reasons(found)]
    return "\n".join(lines)


def _reasons(found: Finding) -> list[str]:
    return [*found.wrong, *found.unknown, *(f"assumed: {one}" for one in found.assumed), *found.notes]


def check(options: Check) -> None:
    """Run the command; see the module docstring."""
    container = find_container(options.server)
    established = options.tensorrt is not None or container.established
    server = Server(container, options.tensorrt or container.tensorrt, established, options.gpu_compute_capability)
    rows = [(version, examine(version, server)) for version in find_versions(options.folder)]
    trust = "" if established else ", to be verified"
    print(f"{container.image}: Triton {container.triton or '?'}, TensorRT {server.tensorrt or 'not established'}{trust}")
    print(table(rows))
    bad = [version.name for version, found in rows if found.wrong or found.unknown]
    if bad:
        raise UsageError(f"{len(bad)} of {len(rows)} versions cannot be counted on to load there: {', '.join(bad)}")


if __name__ == "__main__":
    run_command(lambda: check(tyro.cli(Check, prog="python -m builders.check", description=__doc__)))

"""Who may import whom. `training` may use `contract` (standard library only): it carries exit codes and file formats."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"contract": "", "training": "contract", "builders": "contract training", "clients": "contract"}
MAY_IMPORT |= {"serving": "contract clients", "loadtests": "contract clients", "demo": ""}
TRITON_CLIENT = ("clients/", "serving/", "builders/model_config.py")
PLANTED = ["contract/a numpy", "training/a builders.build", "demo/a contract", "clients/a tyro", "serving/a tests.tiny"]
PLANTED += ["loadtests/a tritonclient.grpc", "builders/build tensorrt_rtx_bindings", "model_repository/m/1/model contract"]


def forbidden(path: str, source: str) -> set[str]:
    package, nodes = Path(path).parts[0], list(ast.walk(ast.parse(source)))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {"." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)}
    names = {name.split(".")[0] or package for name in found}  # a relative import stays in its package
    own = set() if package == "model_repository" else {package}
    bad = names & {*MAY_IMPORT, "model_repository", "tests"} - own - set(MAY_IMPORT.get(package, "").split())
    bad |= {name for name in names if name.startswith("tensorrt") and path != "builders/trt_engine.py"}
    bad |= {"tyro"} & names if '\nif __name__ == "__main__":\n' not in source else set()
    bad |= {"tritonclient"} & names if not path.startswith(TRITON_CLIENT) else set()
    return bad | (names - sys.stdlib_module_names - own if package == "contract" else set())


@pytest.mark.parametrize("pattern", [*(f"{package}/**/*.py" for package in MAY_IMPORT), "model_repository/*/1/model.py"])
def test_every_file_imports_only_what_the_table_allows(pattern: str) -> None:
    found = {path: forbidden(str(path.relative_to(ROOT)), path.read_text()) for path in ROOT.glob(pattern)}
    assert found and {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_import_is_found(planted: str) -> None:
    path, name = planted.split()
    assert forbidden(f"{path}.py", f"def f():\n    import os, {name}, json") == {name.split(".")[0]}

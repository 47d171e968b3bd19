"""`builders.external_data`: an ONNX file has nothing read from outside its folder."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from builders.external_data import outside_files, read_onnx
from contract.command import UsageError

WHERE = ("initializer", "sparse", "constant", "branch", "function")


def stored(location: str, name: str = "weight") -> onnx.TensorProto:
    """A tensor whose numbers are in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def with_weight(tensor: onnx.TensorProto, where: str = "initializer") -> onnx.ModelProto:
    """A model that keeps this weight at one of the places where ONNX has any."""
    model = helper.make_model(helper.make_graph([], "graph", [], []))
    constant = helper.make_node("Constant", [], ["weight"], value=tensor)
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    elif where == "constant":
        model.graph.node.append(constant)
    elif where == "branch":
        branch = helper.make_graph([constant], "branch", [], [])
        model.graph.node.append(helper.make_node("If", ["a"], ["b"], then_branch=branch, else_branch=branch))
    else:
        model.functions.add(name="function").node.append(constant)
    return model


@pytest.mark.parametrize("where", WHERE)
def test_a_weight_outside_the_folder_is_found_wherever_it_stands(where: str, tmp_path: Path) -> None:
    assert outside_files(with_weight(stored("../weights"), where), tmp_path) == ["../weights"]
    assert outside_files(with_weight(stored("weights"), where), tmp_path) == []


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights", "a/../../weights", "link", "folder/weights"])
def test_paths_that_lead_out_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    home = tmp_path / "engine"
    home.mkdir()
    (tmp_path / "weights").write_bytes(bytes(8))
    (home / "link").symlink_to(tmp_path / "weights")
    (home / "folder").symlink_to(tmp_path)
    path = home / "model.onnx"
    path.write_bytes(with_weight(stored(location)).SerializeToString())
    with pytest.raises(UsageError, match=f"keeps weights outside its folder, in {location}; build it again"):
        read_onnx(path)


def test_files_beside_it_and_weights_of_its_own_are_read_even_through_a_linked_folder(tmp_path: Path) -> None:
    home, model = tmp_path / "engine", with_weight(stored("data/weights"))
    home.mkdir()
    (home / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "link").symlink_to(home)
    assert read_onnx(tmp_path / "link" / "model.onnx") == model


@pytest.mark.parametrize("content", [None, b"no graph"])
def test_what_is_no_onnx_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read .*model\.onnx"):
        read_onnx(tmp_path / "model.onnx")

"""Weights that an ONNX file keeps in other files: what is read with it must lie in its own folder.

Our graphs hold all their weights. A file that was changed could name any path there, and whoever loads it reads that path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from contract.command import UsageError


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in a file, external data left unread.

    Raises:
        UsageError: it is no ONNX file, or it would have files read that are outside its folder.
    """
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if outside := outside_files(model, path.parent):
        raise UsageError(f"{path} keeps weights outside its folder, in {', '.join(outside)}; build it again")
    return model


def outside_files(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The locations of external data that are absolute or lead out of `folder`, by `..` or by a symbolic link."""
    named = {ExternalDataInfo(tensor).location for tensor in _tensors(model) if uses_external_data(tensor)}
    home = folder.resolve()
    return sorted(name for name in named if Path(name).is_absolute() or not (home / name).resolve().is_relative_to(home))


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _of_graph(graph)

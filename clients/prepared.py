"""A request of Triton's gRPC or HTTP protocol as ready bytes, and the release out of an answer's bytes.

For load generators, which must not spend their time on building the same requests again; callers use `clients.connect`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tritonclient.grpc import service_pb2

from clients.errors import ServerError
from clients.payload import encode_texts
from clients.wire import ALL_CLASSES
from contract.tensors import CLASSIFIER, FEATURES, LOGITS, RELEASE, TEXT, TRUNCATED

INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
INFER_PATH = f"/v2/models/{CLASSIFIER}/infer"
OUTPUTS = {LOGITS, TRUNCATED, RELEASE}


def request_bytes(texts: Sequence[str], *, model: str = CLASSIFIER, features: int = 0) -> bytes:
    """The very request that `Classifier.classify` sends for at most `MAX_BATCH_SIZE` texts. Raises BadRequest as it does.

    `features` numbers travel beside each text, all 0: what they are makes no difference to the time of an answer.
    """
    encoded = [text for (text,) in encode_texts(texts)]
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=TEXT, datatype="BYTES", shape=[len(texts), 1])
    request.raw_input_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in encoded))
    if features:
        request.inputs.add(name=FEATURES, datatype="FP32", shape=[len(texts), features])
        request.raw_input_contents.append(bytes(4 * len(texts) * features))
    request.outputs.add(name=LOGITS).parameters["classification"].int64_param = ALL_CLASSES
    for name in (TRUNCATED, RELEASE):
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


def release_in(answer: bytes, texts: int) -> str:
    """The release that answered. Raises ServerError unless every output has one row for each of so many texts."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    shapes = {output.name: list(output.shape) for output in response.outputs}
    _check(shapes, texts)
    raw = response.raw_output_contents[list(shapes).index(RELEASE)]
    return bytes(raw[4 : 4 + int.from_bytes(raw[:4], "little")]).decode()


def request_json(texts: Sequence[str]) -> bytes:
    """The same request as the JSON that `curl` sends. Raises BadRequest as `request_bytes` does."""
    encode_texts(texts)
    outputs: list[dict[str, object]] = [{"name": LOGITS, "parameters": {"classification": ALL_CLASSES}}]
    outputs += [{"name": TRUNCATED}, {"name": RELEASE}]
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}
    return json.dumps({"inputs": [tensor], "outputs": outputs}).encode()


def release_in_json(answer: bytes, texts: int) -> str:
    """As `release_in`, of an answer in JSON."""
    outputs = {output["name"]: output for output in json.loads(answer)["outputs"]}
    _check({name: output["shape"] for name, output in outputs.items()}, texts)
    return str(outputs[RELEASE]["data"][0])


def _check(shapes: dict[str, list[int]], texts: int) -> None:
    if set(shapes) != OUTPUTS or any(shape[:1] != [texts] for shape in shapes.values()):
        raise ServerError(f"{texts} texts were sent, and the answer has the shapes {shapes}")

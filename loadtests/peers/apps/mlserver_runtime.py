"""transformers' pipeline as an MLServer runtime with MLServer's adaptive batching: model-settings.json names it."""

from __future__ import annotations

from mlserver import MLModel  # type: ignore[import-not-found]  # in the peer's environment alone
from mlserver.codecs import StringCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from loadtests.peers.apps.model import TextClassifier


class Classifier(MLModel):  # type: ignore[misc]
    """The model of one server."""

    async def load(self) -> bool:
        """Read the weights."""
        self._classifier = TextClassifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The texts of one request, or of several that MLServer has joined."""
        texts = StringCodec.decode_input(payload.inputs[0])
        output = StringCodec.encode_output("label", self._classifier.classify(texts))
        return InferenceResponse(model_name=self.name, outputs=[output])

"""MLServer: a model that does nothing, and the example's network on MXNet."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Noop(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        count = payload.inputs[0].shape[0]
        output = ResponseOutput(name="ok", shape=[count, 1], datatype="BOOL", data=[True] * count)
        return InferenceResponse(model_name=self.name, outputs=[output])


class Crepe(MLModel):
    async def load(self) -> bool:
        # In the workers only: the server's own process does not need MXNet.
        from crepe_mxnet import Crepe as Network

        self.network = Network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        columns = {column.name: StringCodec.decode_input(column) for column in payload.inputs}
        reviews = list(zip(columns["review_title"], columns["review"], strict=True))
        categories = StringCodec.encode_output("category", self.network(reviews))
        return InferenceResponse(model_name=self.name, outputs=[categories])

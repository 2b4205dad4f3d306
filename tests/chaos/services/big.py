"""A network of one dense layer, whose parameters are 400 MB and made in memory."""

from typing import Any

import mxnet as mx

from mms.model_service.mxnet_model_service import GluonImperativeBaseService

UNITS = 10_000


class Big(GluonImperativeBaseService):
    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        net = mx.gluon.nn.Dense(UNITS, in_units=UNITS, use_bias=False)
        net.initialize()
        super().__init__(model_name, model_dir, manifest, net, gpu)
        # Read once, so that the pages are there before workers are forked.
        self._inference(mx.nd.ones((1, UNITS), ctx=self.ctx)).wait_to_read()

    def _preprocess(self, data: list[Any]) -> Any:
        return mx.nd.full((1, UNITS), data[0][0], ctx=self.ctx)

    def _inference(self, data: Any) -> Any:
        return self.net(data)

    def _postprocess(self, data: Any) -> list[int]:
        data.wait_to_read()
        return list(data.shape)

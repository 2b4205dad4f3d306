"""Updates metrics as services of 0.4 do: those of the server by name, and one of its own."""

import threading

from mms.metric import Metric, MetricUnit
from mms.metrics_manager import MetricsManager
from mms.model_service.model_service import SingleNodeService


class MeteringService(SingleNodeService):
    def __init__(self, model_name, model_dir, manifest, gpu=None):
        super().__init__(model_name, model_dir, manifest, gpu)
        self.model_name = model_name
        self.words = Metric(
            "Words", threading.Lock(), model_name, MetricUnit["count"], aggregate_method="total_sum"
        )
        self.words.update(1000)

    def inference(self, data):
        if self.model_name + "_LatencyPreprocess" in MetricsManager.metrics:
            MetricsManager.metrics[self.model_name + "_LatencyPreprocess"].update(20)
        MetricsManager.metrics[self.model_name + "_Prediction5XX"].update(metric=1)
        self.words.update(len(data[0]))
        return len(data[0])

"""PUBLIC: metrics as JSON, under MMS 1.x's name."""

from __future__ import annotations

import json
from typing import Any

from mms.metrics.dimension import Dimension
from mms.metrics.metric import Metric


class MetricEncoder(json.JSONEncoder):
    """Encodes metrics and dimensions: ``json.dumps(metrics, cls=MetricEncoder)``."""

    def default(self, obj: Any) -> Any:
        """Return the fields of a metric or dimension.

        Raises:
            TypeError: It is neither.
        """
        if isinstance(obj, (Metric, Dimension)):
            return obj.to_dict()
        return super().default(obj)

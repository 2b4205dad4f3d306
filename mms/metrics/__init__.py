"""PUBLIC: the metrics API of MMS 1.x handlers, under 1.x's import paths."""

from mms.lazy import lazily

__getattr__ = lazily(
    __name__,
    ("dimension", "metric", "metric_encoder", "metrics_store", "system_metrics", "unit"),
)

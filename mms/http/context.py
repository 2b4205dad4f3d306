"""What handlers share: given to them through the application, made once at start."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from mms.config.settings import ServerSettings
from mms.metrics.exporter import Exporter, ServerMetrics
from mms.serving.budget import Budget
from mms.serving.controlplane import ControlPlane
from mms.serving.registry import Registry
from mms.serving.shadow import Shadows


@dataclass
class Context:
    """The parts of the server that routes need.

    Attributes:
        registry: The models.
        settings: The server's settings.
        metrics: Counters of requests that belong to no model.
        exporter: Renders all metrics.
        shadows: Copies of requests for other versions.
        budget: Bytes of requests and answers that may be held.
        controlplane: Changes which models there are.
        is_started: Whether every start-up model has been loaded.
        is_stopping: Whether the server is about to stop: not ready, but still serving.
        is_draining: Whether it accepts no more.
    """

    registry: Registry
    settings: ServerSettings
    metrics: ServerMetrics
    exporter: Exporter
    shadows: Shadows
    budget: Budget
    controlplane: ControlPlane
    is_started: bool = False
    is_stopping: bool = False
    is_draining: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether every start-up model can serve now, and the server is not stopping.

        Where models were configured and none is left, nothing can be served.
        """
        return (
            self.is_started
            and not self.is_stopping
            and not (self.controlplane.expects_models and self.registry.is_empty)
            and all(s.is_ready for s in self.controlplane.startup_servables())
        )


CONTEXT = web.AppKey("context", Context)

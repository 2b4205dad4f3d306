"""What handlers share: given to them through the application, made once at start."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from mms.config import ServerSettings
from mms.serving.dataplane import DataPlane, ServerState
from mms.serving.manager import ModelManager
from mms.serving.registry import Registry
from mms.telemetry.prometheus import Exporter


@dataclass
class Context:
    """The parts of the server that routes need.

    Attributes:
        registry: The models.
        settings: The server's settings.
        exporter: Renders all metrics.
        dataplane: Answers calls.
        manager: Changes which models there are; None before there is one.
    """

    registry: Registry
    settings: ServerSettings
    exporter: Exporter
    dataplane: DataPlane
    manager: ModelManager | None = None

    @property
    def is_ready(self) -> bool:
        """Whether every start-up model can serve now, and the server is not stopping.

        Where models were configured and none is left, nothing can be served.
        """
        expects_models = self.manager is not None and self.manager.expects_models
        return (
            self.dataplane.state is ServerState.SERVING
            and not (expects_models and self.registry.is_empty)
            and all(s.is_ready for s in self.registry.servables() if s.is_startup)
        )


CONTEXT = web.AppKey("context", Context)

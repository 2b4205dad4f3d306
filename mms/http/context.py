"""What handlers share: given to them through the application, made once at start."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from mms.config.settings import ServerSettings
from mms.serving.controlplane import ControlPlane
from mms.serving.dataplane import DataPlane, ServerState
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
        controlplane: Changes which models there are.
    """

    registry: Registry
    settings: ServerSettings
    exporter: Exporter
    dataplane: DataPlane
    controlplane: ControlPlane

    @property
    def is_ready(self) -> bool:
        """Whether every start-up model can serve now, and the server is not stopping.

        Where models were configured and none is left, nothing can be served.
        """
        return (
            self.dataplane.state is ServerState.SERVING
            and not (self.controlplane.expects_models and self.registry.is_empty)
            and all(s.is_ready for s in self.controlplane.startup_servables())
        )


CONTEXT = web.AppKey("context", Context)

"""The objects that handlers share, created once at start-up and stored in the application."""

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
        dataplane: Handles inference calls.
        controlplane: Registers, changes and unregisters models.
    """

    registry: Registry
    settings: ServerSettings
    exporter: Exporter
    dataplane: DataPlane
    controlplane: ControlPlane

    @property
    def is_ready(self) -> bool:
        """Whether every start-up model can serve now, and the server is not stopping.

        One that has been scaled to no worker is not waited for, as in 1.x. If models are configured
        and none is left, the server is not ready.
        """
        return (
            self.dataplane.state is ServerState.SERVING
            and not (self.controlplane.expects_models and self.registry.is_empty)
            and all(s.is_ready or not s.size for s in self.controlplane.startup_servables())
        )


CONTEXT = web.AppKey("context", Context)

"""Services of 0.4 as 1.x ran them: through ``initialize(context)`` and ``handle(data, context)``.

Services that were changed for 1.x, but kept 0.4's classes and archive, override these two.
"""

from __future__ import annotations

import inspect
from typing import Any

from mms.context import Context
from mms.metrics.metrics_store import MetricsStore
from mms.model_service.model_service import ModelService
from mms.wire.messages import LoadSpec


def initialize(service: Any, spec: LoadSpec, manifest: dict[str, Any]) -> Context:
    """Call a service's `initialize`, if it has one like 1.x's, and return its context."""
    context = Context(spec.model_name, spec.folder, manifest, spec.batch_size, spec.gpu)
    context.metrics = MetricsStore(None, spec.model_name)
    if _takes_context(service, "initialize", 1):
        service.initialize(context)
    return context


def overrides_handle(service: Any) -> bool:
    """Return whether a service answers requests by a `handle` of its own, like 1.x's."""
    base = getattr(ModelService, "handle", None)
    own = getattr(type(service), "handle", None)
    return own is not base and _takes_context(service, "handle", 2)


def _takes_context(service: Any, name: str, count: int) -> bool:
    """Return whether a method takes so many arguments, the last of them called ``context``.

    To 0.4 these names meant nothing, so a service may have methods of its own under them.
    """
    method = getattr(service, name, None)
    if not inspect.ismethod(method):
        return False
    names = list(inspect.signature(method).parameters)
    return len(names) == count and names[-1] == "context"

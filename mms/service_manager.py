"""PUBLIC: 0.4's manager of services, which services seldom need."""

from mms.lazy import retired

ServiceManager = retired(
    "mms.service_manager.ServiceManager",
    "register models with the management API (POST /models)",
)

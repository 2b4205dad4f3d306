"""BentoML: what all services set."""

from __future__ import annotations

import os
from typing import Any

SETTINGS: dict[str, Any] = {
    "workers": int(os.environ["PEER_WORKERS"]),
    "threads": 1,
    # Each request leaves a timer of this length behind, and the memory that it holds.
    "traffic": {"timeout": 10},
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
    "monitoring": {"enabled": False},
}

"""PUBLIC: 1.x's entry points, for scripts that start the server themselves."""

from mms.cli.serve import multi_model_server as start

old_start = start

__all__ = ["old_start", "start"]

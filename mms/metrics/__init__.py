"""PUBLIC: the metrics API of MMS 1.x handlers, under 1.x's import paths."""

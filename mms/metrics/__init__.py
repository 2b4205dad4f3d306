"""What the server counts (`exporter`), and the names under which 1.x handlers report metrics.

PUBLIC, as in MMS 1.x: `metrics_store`, `metric`, `dimension` and `unit`. Imports nothing by itself:
workers have no use for the exporter.
"""

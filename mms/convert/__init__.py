"""Convert MXNet networks to ONNX, and prove it: trace, repair, cut, compare.

Runs in processes that the exporter or the server starts, never in a worker.
"""

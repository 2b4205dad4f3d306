"""The inference engines: import MXNet and onnxruntime, decode images, run int8 networks.

The lowest layer that touches an engine: services and workers build on it, and it imports neither.
"""

"""What runs a network: MXNet and onnxruntime found and imported, images decoded, int8 networks.

The ground floor of everything that touches an engine: services and workers build on it, and it
imports neither.
"""

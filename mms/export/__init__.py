"""Packing: from a folder with a trained model to an archive, quantized and checked if asked for."""

"""Package a folder with a trained model as an archive, optionally quantized and checked."""

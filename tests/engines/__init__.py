"""Networks on onnxruntime and OpenVINO."""

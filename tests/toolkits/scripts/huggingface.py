"""As `generic`, for the Hugging Face toolkit, in whose environment there is no PyTorch.

The toolkit asks PyTorch or TensorFlow for a GPU before it loads a model, and both are gigabytes;
this script answers for them. The toolkit's own `preprocess` and `postprocess` run.
"""

from sagemaker_huggingface_inference_toolkit import handler_service

handler_service._is_gpu_available = lambda: False


def model_fn(model_dir):
    return 3


def predict_fn(data, model):
    return {"scores": [model * number for number in data["inputs"]]}

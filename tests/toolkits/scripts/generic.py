"""What a user of SageMaker writes: the functions that its toolkits look for."""

import json


def model_fn(model_dir):
    return 3


def input_fn(data, content_type):
    assert content_type == "application/json"
    return json.loads(data)


def predict_fn(data, model):
    return [model * number for number in data]


def output_fn(prediction, accept):
    return json.dumps(prediction)

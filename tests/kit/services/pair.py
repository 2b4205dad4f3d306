"""Answers both of its inputs."""

from mms.model_service.model_service import ModelService


class Pair(ModelService):
    def inference(self, data):
        left, right = data
        return [left, right]

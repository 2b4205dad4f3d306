"""Answers what it was sent, with the pid of its worker on request."""

import os

from mms.model_service.model_service import SingleNodeService


class Echo(SingleNodeService):
    def _postprocess(self, data):
        if data[0] == ["pid"]:
            return {"pid": os.getpid()}
        return data[0]

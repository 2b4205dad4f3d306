"""Services with 0.4's classes that were changed for 1.x, and ones that only look so."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from mms.export.package import export_model
from tests.kit.archives import write_linear
from tests.kit.server import StartServer

#: Changed by hand for 1.x, which ran 0.4's archives through these methods.
CHANGED = """
from mms.model_service.mxnet_model_service import MXNetBaseService

class Changed(MXNetBaseService):
    def initialize(self, context):
        super().initialize(context)
        self.batch_size = context.system_properties["batch_size"]

    def handle(self, data, context):
        context.set_response_content_type(0, "text/x-own")
        answers = super().handle(data, context)
        return [f"{answers[0]} {self.batch_size} {self._context is context}"]
"""
#: To 0.4, the same names meant nothing.
OTHER = """
from mms.model_service.mxnet_model_service import MXNetBaseService

class Other(MXNetBaseService):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._context = "mine"
        self.initialize()

    def initialize(self):
        self.ready = self.handle(1)

    def handle(self, number):
        return number + 1

    def _postprocess(self, data):
        return [self._context, self.ready]
"""


def pack(folder: Path, service: str) -> Path:
    (write_linear(folder) / "service.py").write_text(service)
    return export_model(folder.name, folder, None, folder.parent).path


async def test_a_service_changed_for_1_x_is_asked_as_1_x_asked_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    changed = pack(tmp_path / "changed", CHANGED)
    other = pack(tmp_path / "other", OTHER)
    server = await start_server(changed=changed, other=other)
    for body in (b"[[1, 2, 3]]", b"[(1, 2, 3,)]"):
        form = aiohttp.FormData({"data": body.decode()})
        async with server.session.post(f"{server.url}/predictions/changed", data=form) as answer:
            assert answer.content_type == "text/x-own"
            assert await answer.text() == "[[1.0, 15.0]] 1 True"
    assert await server.ask("other", [[1, 2, 3]]) == (200, ["mine", 2])

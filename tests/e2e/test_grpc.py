"""The command with ``--grpc-port``, as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc

from mms.grpc import inference_pb2 as pb
from mms.grpc import inference_pb2_grpc
from tests.e2e.test_cli import LIMIT_S, wait_for
from tests.kit.waiting import let_go
from tests.v2.models import write_handler


def serve(folder: Path, before: str = "") -> subprocess.Popen[str]:
    """Run the command with one model, after some lines of Python."""
    handler = write_handler(folder / "handler")
    program = f"{before}\nfrom mms.cli.serve import main\nmain()"
    return subprocess.Popen(
        [
            sys.executable, "-c", program, "--models", f"handler={handler}",
            "--handler", "service:handle", "--workers", "1", "--port", "0",
            "--management-port", "-1", "--grpc-port", "0",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MMS_WORK_DIR": str(folder / "work")},
    )  # fmt: skip


def test_without_grpcio_the_command_says_what_to_install(tmp_path: Path) -> None:
    with serve(tmp_path, "import sys\nsys.modules['grpc'] = None") as command:
        _, output = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 2
    assert "run: pip install 'mxnet-model-server[grpc]'" in output


def test_it_says_where_it_listens_and_answers_what_it_has_accepted_on_sigterm(
    tmp_path: Path,
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with serve(tmp_path) as command:
        assert command.stderr is not None
        lines = iter(command.stderr)
        address = next(line.split()[-1] for line in lines if line.startswith("gRPC on "))
        reading = threading.Thread(target=lambda: [None for _ in lines])
        reading.start()
        with grpc.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = pb.ModelInferRequest(model_name="handler")
            tensor = request.inputs.add(name="wait", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(str(notes).encode())
            call = stub.ModelInfer.future(request, timeout=LIMIT_S)
            wait_for(lambda: list(notes.iterdir()))
            command.send_signal(signal.SIGTERM)
            let_go(notes)
            assert b"wait" in call.result().raw_output_contents[0]
        assert command.wait(LIMIT_S) == 0
        reading.join()

"""The generated modules of gRPC, beside the compiler's and those of another client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

import mms
from mms.grpc import inference_pb2 as pb

ROOT = Path(mms.__file__).parents[1]


def test_the_generated_modules_are_those_of_the_proto(tmp_path: Path) -> None:
    target = tmp_path / "set.bin"
    command = ["-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={target}"]
    subprocess.run(
        [sys.executable, *command, "mms/grpc/inference.proto"], cwd=ROOT, check=True, timeout=60
    )
    compiled = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file[0]
    generated = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(generated)
    for document in (compiled, generated):
        _drop_derived(document)
    assert generated == compiled, "run: make proto"


def _drop_derived(document: Any) -> None:
    """Drop what some versions of the compiler add: the JSON names of fields."""
    messages = list(document.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            field.ClearField("json_name")


def test_the_messages_are_those_that_clients_of_the_protocol_know() -> None:
    # In a process of its own: both register messages of the same names.
    program = (
        "import sys, tritonclient.grpc.service_pb2 as theirs\n"
        "sys.stdout.buffer.write(theirs.DESCRIPTOR.serialized_pb)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=60
    )
    theirs = descriptor_pb2.FileDescriptorProto.FromString(done.stdout)
    ours = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert ours.package == theirs.package
    known = _fields(theirs.message_type)
    found = _fields(ours.message_type)
    assert len(found) > 50
    assert {name: known.get(name) for name in found} == found
    methods = {m.name: (m.input_type, m.output_type) for m in theirs.service[0].method}
    assert ours.service[0].name == theirs.service[0].name
    for method in ours.service[0].method:
        assert methods[method.name] == (method.input_type, method.output_type)


def _fields(messages: Any, prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """Return number, type and label of each field by its full name."""
    found: dict[str, tuple[Any, ...]] = {}
    for message in messages:
        name = f"{prefix}{message.name}"
        for field in message.field:
            about = (field.number, field.type, field.label, field.type_name)
            found[f"{name}.{field.name}"] = about
        found |= _fields(message.nested_type, f"{name}.")
    return found

"""Entry point of the child process: ``python -m mms.worker FD``.

Reads its LoadSpec, loads the model and answers READY or FAILED. From then on it obeys frames: run
a BATCH, FORK a worker onto the socket passed along, STOP. A loader is only ever sent FORK, a
worker only BATCH; both run the same loop.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from mms import log
from mms.errors import EngineMissing, MMSError, ProtocolError
from mms.metric import take_report
from mms.wire.codec import (
    decode_batch,
    decode_control,
    decode_load,
    encode_control,
    encode_result,
    error_document,
)
from mms.wire.frames import FrameType
from mms.wire.messages import LoadSpec, Ready, Request, Result
from mms.worker.channel import Channel
from mms.worker.confine import confine, confine_loaded
from mms.worker.process import die_with, fork_worker, ignore_stop_signals, may_fork


class Runner(Protocol):
    """Runs batches.

    Attributes:
        batch_size: Maximum number of requests joined in one forward pass.
        alone_reason: Why requests are not joined whatever the batch size; "" if they may be.
        can_fork: Whether the service or handler survives a fork.
        takes_tensors: Whether the model accepts arrays as they are.
        gives_tensors: Whether an answer can consist of the network's own output arrays.
    """

    batch_size: int
    takes_tensors: bool
    gives_tensors: bool

    @property
    def alone_reason(self) -> str:
        """As described above."""

    @property
    def can_fork(self) -> bool:
        """As described above."""

    def take_metrics(self) -> list[Any]:
        """Return the metrics that the service has reported since the last call."""

    def try_joining(self) -> None:
        """Determine whether requests can be joined, if the batch size is above 1."""

    def run(self, requests: Sequence[Request]) -> Result:
        """Answer each request, in order."""


def main() -> None:
    """Run the process until the server stops it or disappears."""
    # Before mxnet is imported: its own handler exits with 255 silently.
    faulthandler.enable()
    ignore_stop_signals()
    os.environ.pop("PYTHONSAFEPATH", None)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    frame = channel.receive()
    if frame is None:
        return
    if frame.type is not FrameType.LOAD:
        raise ProtocolError(f"the first frame is {frame.type.name}, not LOAD")
    spec = decode_load(frame)
    die_with(spec.server_pid)
    confine(spec.memory_limit)
    log.configure_worker_logging(spec.log_level)
    try:
        runner, ready = _load(spec)
        confine_loaded()
    except MMSError as error:
        channel.send([encode_control(FrameType.FAILED, error_document(error))])
        return
    channel.send([encode_control(FrameType.READY, ready)])
    _serve(channel, runner, spec, ready)


def _load(spec: LoadSpec) -> tuple[Runner, Ready]:
    from mms.engines import images, mxnet_decoder, selection
    from mms.engines.imports import engine_name
    from mms.worker.failure import load_failure
    from mms.worker.loader import load

    images.configure(spec.limits.max_image_pixels)
    mxnet_decoder.install()
    selection.configure(spec.wish)
    try:
        runner, service = load(spec)
    except EngineMissing as error:
        raise error from None
    except (Exception, SystemExit) as error:
        raise load_failure(error, spec.folder) from error
    # What loading and trials have reported belongs to no request.
    take_report()
    can_fork = may_fork(spec) and runner.can_fork
    if can_fork:
        # The collector does not touch objects in its permanent generation, so the pages that hold
        # them stay shared with the forked workers.
        gc.collect()
        gc.freeze()
    ready = Ready(
        can_fork=can_fork,
        engine=engine_name(),
        service=service,
        alone_reason=runner.alone_reason,
        takes_tensors=runner.takes_tensors,
        gives_tensors=runner.gives_tensors,
    )
    return runner, ready


def _serve(channel: Channel, runner: Runner, spec: LoadSpec, ready: Ready) -> None:
    alone_reason = ready.alone_reason
    while (frame := channel.receive()) is not None:
        if frame.type is FrameType.BATCH:
            result = runner.run(decode_batch(frame))
            if metrics := [*runner.take_metrics(), *take_report()]:
                channel.send([encode_control(FrameType.METRICS, metrics)])
            channel.send(encode_result(frame.batch_id, result))
            alone_reason = _report_alone(channel, runner, alone_reason)
        elif frame.type is FrameType.FORK:
            channel = _fork(channel, spec, ready)
        elif frame.type is FrameType.CONFIGURE:
            runner.batch_size = decode_control(frame)
            runner.try_joining()
            take_report()
            alone_reason = _report_alone(channel, runner, alone_reason)
        elif frame.type is FrameType.STOP:
            return
        else:
            raise ProtocolError(f"the server sent a {frame.type.name} frame")


def _report_alone(channel: Channel, runner: Runner, known: str) -> str:
    """Send the server the reason why requests run one at a time, if it is new; return it."""
    if runner.alone_reason != known:
        channel.send([encode_control(FrameType.ALONE, runner.alone_reason)])
    return runner.alone_reason


def _fork(channel: Channel, spec: LoadSpec, ready: Ready) -> Channel:
    """Fork a worker; return the channel to continue with, which differs on the two sides."""
    descriptor = channel.take_descriptor()
    try:
        pid = fork_worker(spec.server_pid)
    except OSError as error:
        os.close(descriptor)
        failure = MMSError(f"a worker could not be forked: {error.strerror or error}")
        channel.send([encode_control(FrameType.FAILED, error_document(failure))])
        return channel
    if pid:
        os.close(descriptor)
        channel.send([encode_control(FrameType.FORKED, pid)])
        return channel
    channel.close()
    own = Channel(socket.socket(fileno=descriptor))
    forked = replace(ready, can_fork=False)
    own.send([encode_control(FrameType.READY, forked)])
    return own


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    # Skips MXNet's teardown, which can take a third of a second or hang.
    os._exit(0)

"""What the settings of a model ask of its queue, its pool and its workers. Pure."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from mms.archive.reader import Archive
from mms.config.resources import usable_cores
from mms.config.settings import ModelSettings
from mms.serving.pool.starter import PoolSettings
from mms.serving.queue.dispatcher import Limits
from mms.wire.messages import LoadSpec, RequestLimits

_QUEUE_PER_WORKER = 100


def initial_size(settings: ModelSettings) -> int:
    """Return the number of workers to start with."""
    return settings.workers or len(settings.gpu) or usable_cores()


def threads(settings: ModelSettings, size: int) -> int:
    """Return the number of compute threads of each of `size` workers."""
    return settings.threads or max(1, usable_cores() // max(size, 1))


def queue_size(settings: ModelSettings, size: int) -> int:
    """Return how many requests may wait for `size` workers."""
    return settings.queue_size or _QUEUE_PER_WORKER * max(size, settings.max_workers, 1)


def queue_limits(settings: ModelSettings, size: int) -> Limits:
    """Return the settings of the queue before `size` workers."""
    return Limits(
        batch_size=settings.batch_size,
        queue_size=queue_size(settings, size),
        max_batch_delay_s=settings.max_batch_delay / 1000,
        linger_s=settings.linger / 1000,
        response_timeout_s=settings.response_timeout,
        retry_on_crash=settings.retry_on_crash,
    )


def pool_settings(
    settings: ModelSettings, size: int, environment: Mapping[str, str]
) -> PoolSettings:
    """Return how `size` workers are to be run, each in this environment."""
    return PoolSettings(
        workers=size,
        gpus=settings.gpu,
        gpu_memory=settings.gpu_memory,
        preload=settings.preload,
        load_timeout_s=settings.load_timeout,
        environment=environment,
    )


def load_spec(
    name: str,
    version: str,
    archive: Archive,
    settings: ModelSettings,
    max_response_bytes: int,
    limits: RequestLimits,
    is_strict: bool,
) -> LoadSpec:
    """Return what a worker must know to load a model.

    Args:
        name: Name clients use.
        version: Its version.
        archive: Where it is unpacked.
        settings: How to serve it.
        max_response_bytes: Longest answer that may be sent.
        limits: What one request may cost in a worker.
        is_strict: Whether slips of the service's author keep it from being served.
    """
    return LoadSpec(
        model_name=name,
        version=version,
        folder=str(archive.folder),
        service_file=settings.service and str(Path(settings.service).resolve()),
        handler=archive.manifest.handler,
        decode_input_request=settings.decode_input_request,
        gpu=None,
        batch_size=settings.batch_size,
        max_response_bytes=max_response_bytes,
        log_level=logging.getLogger().getEffectiveLevel(),
        server_pid=os.getpid(),
        may_fork=False,
        memory_limit=settings.worker_memory_limit,
        limits=limits,
        is_strict=is_strict,
    )

"""Derive the settings of a model's queue, pool and workers from the model's settings. Pure."""

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
from mms.wire.messages import EngineWish, LoadSpec, RequestLimits

_QUEUE_PER_WORKER = 100


def initial_size(settings: ModelSettings) -> int:
    """Return the initial number of workers."""
    return settings.workers or len(settings.gpu) or usable_cores()


def threads(settings: ModelSettings, size: int) -> int:
    """Return the number of compute threads of each of `size` workers."""
    return settings.threads or max(1, usable_cores() // max(size, 1))


def queue_size(settings: ModelSettings, size: int) -> int:
    """Return the maximum number of queued requests with `size` workers."""
    return settings.queue_size or _QUEUE_PER_WORKER * max(size, settings.max_workers, 1)


def queue_limits(settings: ModelSettings, size: int) -> Limits:
    """Return the settings of the queue with `size` workers."""
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
    """Return the settings of a pool of `size` workers with this environment."""
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
    """Return the instructions for a worker to load a model.

    Args:
        name: Name clients use.
        version: Its version.
        archive: The unpacked archive.
        settings: The model's settings.
        max_response_bytes: Maximum length of a response.
        limits: Limits on one request in a worker.
        is_strict: Whether minor mistakes of the service's author keep the model from loading.
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
        wish=EngineWish(settings.engine, settings.precision, settings.min_agreement),
    )

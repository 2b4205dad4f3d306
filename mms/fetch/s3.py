"""Request an archive from S3 or a compatible service.

boto3 finds credentials, region and endpoint (``AWS_ENDPOINT_URL``) by itself. It is imported with
the first ``s3://`` location only: it is an extra, and it takes its time and memory. Its calls
block, as a download's loop may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from mms.errors import DownloadFailed
from mms.fetch.source import CHUNK_BYTES, Answer, Ask, Interrupted, make_validator

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_HINTS = {
    400: "the request is refused",
    401: "the credentials are refused",
    403: "access is denied to these credentials",
    404: "there is no such object or bucket",
}


@contextlib.asynccontextmanager
async def open_s3(ask: Ask) -> AsyncIterator[Answer | None]:
    """Send a request and yield the answer; None means "not modified".

    The environment says where it is sent, not the location, so that there is no address to check.

    Raises:
        Interrupted: The service cannot be reached, breaks off, or reports a transient failure.
        DownloadFailed: It refuses, or boto3 is not installed or has no credentials.
    """
    bucket, _, key = ask.location.url.removeprefix("s3://").partition("/")
    with contextlib.closing(_client(ask)) as client:
        found = _get(client, {"Bucket": bucket, "Key": key, **_conditions(ask)}, ask)
        if found is None:
            yield None
            return
        with contextlib.closing(found["Body"]) as body:
            start, total = _extent(found, ask)
            # Its dates are no validators: an entity tag is always there.
            validator = make_validator(found.get("ETag"), None)
            yield Answer(start, total, validator, partial(_read, body))


def _client(ask: Ask) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise DownloadFailed(
            f"{ask.location.shown}: s3:// locations need boto3; "
            "run: pip install 'mxnet-model-server[s3]'"
        ) from None
    for name in ("boto3", "botocore", "urllib3"):
        # At DEBUG they log every header, security tokens included, and at INFO each time where
        # they have found the credentials.
        logging.getLogger(name).setLevel(logging.WARNING)
    config = Config(
        connect_timeout=ask.timeouts.connect_s,
        read_timeout=ask.timeouts.read_s,
        # Attempts are counted in one place, which resumes where the last one stopped.
        retries={"total_max_attempts": 1},
    )
    try:
        # A session of its own: the shared one is not for several threads.
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise DownloadFailed(f"{ask.location.shown}: S3 is not configured: {error}") from None


def _conditions(ask: Ask) -> dict[str, str]:
    if ask.offset:
        return {"Range": f"bytes={ask.offset}-", "IfMatch": ask.validator.etag}
    return {"IfNoneMatch": ask.validator.etag} if ask.validator.etag else {}


def _get(client: Any, parameters: dict[str, str], ask: Ask) -> dict[str, Any] | None:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
    )

    try:
        found: dict[str, Any] = client.get_object(**parameters)
    except ClientError as error:
        _check_refusal(error, ask)
        return None
    except NoCredentialsError:
        raise DownloadFailed(
            f"{ask.location.shown}: no AWS credentials were found; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile, or a role"
        ) from None
    except (ConnectionError, HTTPClientError) as error:
        raise Interrupted(f"the service cannot be reached ({type(error).__name__})") from None
    except BotoCoreError as error:
        # What the service sent may follow on further lines.
        reason = str(error).partition("\n")[0][:200]
        raise DownloadFailed(f"{ask.location.shown}: {reason}") from None
    return found


def _check_refusal(error: Any, ask: Ask) -> None:
    """Return if the object is unmodified, and raise what the refusal means otherwise."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))[:50]
    if status == 304:
        return
    if status in (412, 416) and ask.offset:
        raise Interrupted("the object has changed", starts_over=True) from None
    if status in (408, 429) or status >= 500:
        raise Interrupted(f"the service responded with status {status} {code}") from None
    raise DownloadFailed(
        f"{ask.location.shown}: {_HINTS.get(status, 'unexpected status')} ({status} {code})"
    ) from None


def _extent(found: dict[str, Any], ask: Ask) -> tuple[int, int | None]:
    """Return where the body begins in the object, and how long the object is."""
    if not ask.offset:
        return 0, found.get("ContentLength")
    match = _CONTENT_RANGE.fullmatch(found.get("ContentRange", ""))
    if match is None:
        # Sent whole: not every service supports ranges.
        return 0, found.get("ContentLength")
    if int(match[1]) != ask.offset:
        raise Interrupted("the service sent a range that was not requested", starts_over=True)
    return ask.offset, int(match[2])


async def _read(body: Any) -> bytes:
    from botocore.exceptions import BotoCoreError

    # Lets a cancelled download end here.
    await asyncio.sleep(0)
    try:
        data: bytes = body.read(CHUNK_BYTES)
    except (BotoCoreError, OSError) as error:
        raise Interrupted(f"the connection was cut ({type(error).__name__})") from None
    return data

"""Say that the server serves: the models, their addresses, and a command that works."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from mms.cli.terminal import shell_word
from mms.server import Server
from mms.serving.registry import Registry
from mms.version import __version__


def announce(server: Server) -> None:
    """Print the models, their addresses and a command that works."""
    base = server.url
    rows = [
        (
            s.name,
            s.version,
            str(len(s.pool.workers)),
            str(s.settings.batch_size),
            f"{base}/predictions/{s.name}",
        )
        for s in server.registry.servables()
    ]
    header = ("MODEL", "VERSION", "WORKERS", "BATCH", "PREDICT (POST)")
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    example = "\n".join(f"  {line}" for line in _examples(server.registry, base))
    host = base.removeprefix("http://").rpartition(":")[0]
    addresses = [f"Documentation on {base}/docs"]
    if server.grpc_port:
        addresses.append(f"gRPC on {host}:{server.grpc_port}")
    if server.management_port:
        addresses.append(f"Management on {server.management_url}/models")
    click.echo(
        f"\nmxnet-model-server {__version__}, listening on {base}\n\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\n\n"
        + "\n".join(addresses)
        + f"\n\nTry:\n{example}\n",
        err=True,
    )


def _examples(registry: Registry, base: str) -> list[str]:
    """Return a curl command for a model, preferably one with its own sample request."""
    servables = registry.servables()
    if not servables:
        return [f"curl {base}/ping"]
    servable = next((s for s in servables if s.archive.manifest.serving.sample), servables[0])
    archive = servable.archive
    url = f"{base}/predictions/{servable.name}"
    sample = archive.manifest.serving.sample
    if sample:
        text = _inline(archive.folder / sample.file)
        data = (
            f"-d {shell_word(text)}" if text else f"--data-binary {shell_word('@' + sample.file)}"
        )
        header = shell_word(f"content-type: {sample.content_type}")
        return [f"curl -X POST {url} -H {header} {data}"]
    if archive.signature and archive.signature.takes_images:
        return [f"curl -X POST {url} -T image.jpg"]
    return [f"curl {base}/ping", f"curl {base}/api-description"]


def _inline(path: Path) -> str:
    """Return a sample as a single line; "" if it is not a short text."""
    if path.stat().st_size > 500:
        return ""
    try:
        return orjson.dumps(orjson.loads(path.read_bytes())).decode().replace("'", "\\u0027")
    except orjson.JSONDecodeError:
        return ""

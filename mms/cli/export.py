"""``mxnet-model-export``: pack a trained model into an archive."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mms.archive.manifest import SERVING_KEYS, Quantization
from mms.archive.reader import open_archive
from mms.cli.options import Command
from mms.config.layers import check_keys
from mms.config.resources import usable_cores
from mms.config.settings import ModelSettings
from mms.errors import ConfigError, ErrorDetail, ExportError, MMSError, StartupError
from mms.export.package import Export, export_model, export_quantized
from mms.log import configure_logging
from mms.serving.pool.child import become_subreaper, worker_environment
from mms.serving.servable import Servable
from mms.version import __version__
from mms.wire.messages import Dialect, RequestMeta

#: Hidden, since it briefly exists beside archives.
_STAGING_PREFIX = ".mxnet-model-export-"


def main() -> None:
    """Run the command (console entry point)."""
    command.main(prog_name="mxnet-model-export")


def multi_model_export() -> None:
    """Name what stands in for ``multi-model-export`` (console entry point)."""
    click.echo(
        "multi-model-export is gone, as since 1.0: model-archiver packs .mar archives of 1.x, and "
        "mxnet-model-export packs .model archives",
        err=True,
    )
    sys.exit(1)


_HELP = """Pack a Gluon, MXNet symbolic or ONNX model into a .model archive.

\b
mxnet-model-export --model-name character_cnn --model-path FOLDER --check

An option may be shortened to any unambiguous beginning.
"""


@click.command(
    cls=Command,
    help=_HELP,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.option("--model-name", required=True, help="Name of the model and of the file to write.")
@click.option(
    "--model-path",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with signature.json, the parameters, the symbol if there is one, synset.txt and "
    "any other files the service reads; or with a .onnx file, for which signature.json is "
    "generated if missing. A sample.json, sample.jpg or sample.png is the model's sample request.",
)
@click.option(
    "--service-file-path",
    type=click.Path(path_type=Path),
    help="Service file, or a folder that holds exactly one. Optional for symbolic and ONNX models.",
)
@click.option(
    "--export-path",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Folder to write the archive to. [default: the current one]",
)
@click.option(
    "--serving",
    multiple=True,
    metavar="KEY=VALUE",
    help="Default setting for serving the model: workers, batch_size, max_batch_delay, "
    "response_timeout or device; the server's flags override it.",
)
@click.option("--force", is_flag=True, help="Replace an existing archive.")
@click.option(
    "--check", is_flag=True, help="Load the archive in a worker and run its sample request."
)
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Make the network smaller and faster on CPUs, at some cost in accuracy; the cost is "
    "measured on the calibration data.",
)
@click.option(
    "--calibration-data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="For --quantize: a .jsonl file with one request body per line (or .json with a list of "
    "them), a .npz file with one array per input, or a folder of images. Use a hundred samples or "
    "more that resemble real requests.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="For --quantize: reject an int8 network whose agreement with the original is lower.",
)
@click.option(
    "--model-type",
    type=click.Choice(["symbolic", "imperative"]),
    help="Ignored; the format follows from the files. Accepted because v0.4 required it.",
)
@click.version_option(__version__, prog_name="mxnet-model-export")
def command(
    model_name: str,
    model_path: Path,
    service_file_path: Path | None,
    export_path: Path,
    serving: tuple[str, ...],
    force: bool,
    check: bool,
    quantize: str | None,
    calibration_data: Path | None,
    min_agreement: float,
    model_type: str | None,
) -> None:
    """Pack a model."""
    try:
        if bool(quantize) != bool(calibration_data):
            raise ConfigError("--quantize and --calibration-data go together")

        def make(folder: Path, overwrite: bool) -> Export:
            parts = (model_name, model_path, service_file_path)
            if calibration_data is None:
                return export_model(*parts, folder, overwrite, _parse_serving(serving))
            with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX) as staging:
                original = export_model(*parts, Path(staging), False, _parse_serving(serving))
                target = _target(folder, model_name, overwrite)
                return _quantize(original, calibration_data, min_agreement, target)

        if check:
            export, answer = _make_checked(make, _target(export_path, model_name, force))
            _describe(export)
            click.echo(f"check: the archive loads{answer}")
        else:
            _describe(make(export_path, force))
    except MMSError as error:
        if error.detail and error.detail.traceback:
            click.echo(f"{error.detail.traceback}\n", err=True)
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_status if isinstance(error, StartupError) else 1)


def _target(export_path: Path, model_name: str, force: bool) -> Path:
    """Return the file to write, and create its folder.

    Raises:
        ExportError: It exists and may not be replaced, or its folder cannot be created.
    """
    target = Path(os.path.expanduser(export_path)) / f"{model_name}.model"
    if target.exists() and not force:
        raise ExportError(f"{target} already exists; use --force to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{target.parent}: cannot be created: {error.strerror}") from None
    return target


def _make_checked(make: Callable[[Path, bool], Export], target: Path) -> tuple[Export, str]:
    """Build an archive beside its target, and move it there once it has passed the check.

    Returns:
        The export, and the result of its sample request.

    Raises:
        MMSError: It cannot be built, and the target is unchanged; or it fails the check, and no
            archive is left at the target: the previous one is kept beside it, so that a script
            which ignores the failure does not serve it as the new one.
    """
    with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=target.parent) as staging:
        export = make(Path(staging), False)
        try:
            answer = _check(export)
        except BaseException:
            _set_aside(target)
            raise
        os.replace(export.path, target)
    return replace(export, path=target), answer


def _set_aside(target: Path) -> None:
    if target.exists():
        kept = target.with_name(f"{target.name}.previous")
        os.replace(target, kept)
        click.echo(f"the previous archive is kept as {kept}", err=True)


def _parse_serving(pairs: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise ConfigError(f"--serving {pair!r}: expected KEY=VALUE, such as batch_size=8")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    check_keys(values, SERVING_KEYS, "--serving")
    return values


def _describe(export: Export) -> None:
    size = export.path.stat().st_size
    manifest = export.manifest
    click.echo(
        f"{export.path}: {manifest.model_format.value} model {manifest.model_name!r}, "
        f"{export.members} files, {size / 1e6:.1f} MB, service {manifest.service}"
    )


def _quantize(
    original: Export, calibration_data: Path, min_agreement: float, target: Path
) -> Export:
    """Quantize an archive in a separate process, and write it to the target.

    Raises:
        ExportError: The network cannot be quantized, or its agreement with the original is too low.
    """
    if not calibration_data.exists():
        raise ExportError(f"{calibration_data}: no such file or folder with calibration data")
    folder = original.path.parent
    archive = open_archive(original.path, folder)
    prefix = folder / f"{original.manifest.model_name}-int8"
    command = [sys.executable, "-m", "mms.export.calibrate"]
    click.echo(f"quantizing with {calibration_data} ...", err=True)
    done = subprocess.run(
        [*command, str(archive.folder), str(calibration_data), str(prefix)],
        env=worker_environment(os.environ, usable_cores(), lambda _: False),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        *details, reason = done.stderr.strip().splitlines() or ["the process was killed"]
        raise ExportError(
            f"--quantize: {reason}",
            ErrorDetail("load", traceback="\n".join(details)) if done.returncode != 3 else None,
        )
    report = json.loads(done.stdout.strip().splitlines()[-1])
    agreement = report["agreement"]
    click.echo(
        f"int8 agrees with fp32 on {agreement:.2%} of {report['samples']} rows; largest error "
        f"{report['max_relative_error']:.1%} of the largest output",
        err=True,
    )
    if agreement < min_agreement:
        raise ExportError(
            f"int8 agrees with fp32 on only {agreement:.2%}, less than --min-agreement "
            f"{min_agreement:.2%}; nothing was written. Calibrate with data that resembles real "
            "requests, or lower the threshold if this is good enough"
        )
    files = {kind: folder / report[kind] for kind in ("symbol", "parameters")}
    quantization = Quantization("int8", report["samples"], agreement, report["max_relative_error"])
    return export_quantized(archive, files, quantization, target, force=True)


def _check(export: Export) -> str:
    """Load the archive as the server would, and run its sample request.

    Returns:
        The result of the sample request, to be printed after "the archive loads".
    """
    configure_logging("WARNING")
    # The service's own output helps its author.
    logging.getLogger("mms.output").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX) as folder:
        return asyncio.run(_ask(export, Path(folder)))


async def _ask(export: Export, folder: Path) -> str:
    become_subreaper()
    archive = open_archive(export.path, folder)
    settings = ModelSettings(workers=1, preload=False)
    servable = Servable(
        export.manifest.model_name,
        "1",
        archive,
        settings,
        max_response_bytes=1 << 30,
        make_environment=lambda threads: worker_environment(os.environ, threads, lambda _: False),
        is_strict=True,
    )
    try:
        await servable.load()
        sample = archive.manifest.serving.sample
        if sample is None:
            takes_images = archive.signature is not None and archive.signature.takes_images
            name = "sample.jpg" if takes_images else "sample.json"
            return f"; it has no sample request ({name}) to run"
        body = (archive.folder / sample.file).read_bytes()
        meta = RequestMeta("check", Dialect.PLAIN, sample.content_type, "")
        answer = await servable.infer(meta.encode(), [body], len(body))
    except StartupError:
        raise
    except MMSError as error:
        cause = error.detail.cause if error.detail else ""
        reason = f"{error}: {cause}" if cause and cause not in str(error) else str(error)
        raise ExportError(f"the sample request failed: {reason}", error.detail) from error
    finally:
        await servable.unload(0.0, asyncio.Event())
    return f" and answers its sample: {bytes(answer.body).decode(errors='replace')}"


if __name__ == "__main__":
    main()

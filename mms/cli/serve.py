"""``mxnet-model-server``: serve models over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import orjson
import uvloop

from mms.archive.manifest import ServingDefaults
from mms.archive.reader import find_models, read_manifest
from mms.cli.progress import ProgressLine
from mms.cli.terminal import printable, shell_word
from mms.config.build import Config, ModelConfig, build_config
from mms.config.declaration import Unit, rules_of
from mms.config.layers import resolve, with_archive_defaults
from mms.config.printed import to_yaml
from mms.config.settings import ENV_PREFIX, ModelSettings, ServerSettings
from mms.errors import ConfigError, MMSError, StartupError
from mms.fetch.download import cached, fetch, opening
from mms.fetch.location import file_name, shown
from mms.log import configure_logging
from mms.server import Server
from mms.serving.archives import fetch_options
from mms.serving.registry import Registry
from mms.version import __version__

#: Exit status if a model fails with an error that is not a start-up error (out of memory, say).
LOAD_FAILED_STATUS = 3


def main() -> None:
    """Run the command (console entry point)."""
    command.main(args=expand_models(sys.argv[1:]), prog_name="mxnet-model-server")


def expand_models(args: Sequence[str]) -> list[str]:
    """Repeat ``--models`` before each pair; click's options take only one value each."""
    expanded: list[str] = []
    in_models = False
    for arg in args:
        name, separator, value = arg.partition("=")
        if name == "--models":
            in_models = True
            if separator:
                expanded.extend(["--models", value])
            continue
        if arg.startswith("-"):
            in_models = False
        expanded.extend(["--models", arg] if in_models else [arg])
    if args and args[-1] == "--models":
        expanded.append("--models")
    return expanded


def _settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add one flag per setting to the command, from the settings' own declarations."""
    for cls in (ModelSettings, ServerSettings):
        for f in reversed(dataclasses.fields(cls)):
            flag = f"--{f.name.replace('_', '-')}"
            is_flag = isinstance(f.default, bool)
            shown = f" [default: {f.default}]" if f.default not in ("", (), None) else ""
            declaration = f"{flag}/--no-{flag[2:]}" if is_flag else flag
            command = click.option(
                declaration,
                f.name,
                type=None if is_flag else _flag_type(f),
                default=None,
                metavar=None if is_flag else _metavar(f),
                help=f"{rules_of(f).help}{shown}",
            )(command)
    return command


def _flag_type(setting: dataclasses.Field[Any]) -> Any:
    """Return the type by which click checks a flag; lists and units are parsed with the config."""
    is_plain = rules_of(setting).unit is None
    return type(setting.default) if is_plain and type(setting.default) in (int, float) else str


def _metavar(setting: dataclasses.Field[Any]) -> str:
    unit = rules_of(setting).unit
    if unit is not None:
        return "SIZE" if unit is Unit.BYTES else "TIME"
    return "LIST" if isinstance(setting.default, tuple) else type(setting.default).__name__.upper()


@click.command(
    epilog="Every flag can also be set in the environment: --batch-size is MMS_BATCH_SIZE.",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "--models",
    multiple=True,
    metavar="NAME=LOCATION ...",
    help="Models to serve, as pairs of a name and a .model file, an unpacked folder, or an "
    "http(s)://, s3:// or file:// URL; several may follow one --models. Without a name, the name "
    "in the archive is used.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar=f"{ENV_PREFIX}CONFIG",
    help="YAML file with settings and models.",
)
@click.option("--print-config", is_flag=True, help="Print every setting and its origin, and exit.")
@click.argument("mode", required=False, type=click.Choice(["serve"]))
@_settings_options
@click.version_option(__version__, prog_name="mxnet-model-server")
def command(
    models: tuple[str, ...],
    config_file: Path | None,
    print_config: bool,
    mode: str | None,
    **flags: Any,
) -> None:
    r"""Serve MXNet and Gluon models over HTTP.

    SageMaker starts its containers with "serve"; without --models, it serves the archives in
    /opt/ml/model.

    \b
    mxnet-model-server --models crepe=character_cnn.model
    curl http://127.0.0.1:8080/predictions/crepe -H 'content-type: application/json' -d '[...]'
    """
    try:
        server = build_config([], flags, os.environ, config_file).server
        if not print_config:
            configure_logging(
                server.log_level,
                server.log_format,
                Path(server.log_file) if server.log_file else None,
                server.log_rotation_time or None,
            )
        progress = ProgressLine(sys.stderr) if sys.stderr.isatty() else None
        pairs = [_parse_model(text, server, progress) for text in models]

        def read() -> Config:
            config = build_config(pairs, flags, os.environ, config_file)
            if mode == "serve" and not config.models and not config.server.multi_model:
                shared, _ = resolve(ModelSettings, config.layers)
                found = _sagemaker_models(os.environ, shared.handler)
                config = build_config(found, flags, os.environ, config_file)
            return config

        config = read()
        if print_config:
            _print_config(config)
            return
        if not (config.models or server.model_store or server.allowed_urls or server.state_file):
            raise ConfigError("no model to serve; set --models NAME=PATH")
        uvloop.run(Server(config, _announce, read, progress).run())
    except MMSError as error:
        _report(error)
        sys.exit(error.exit_status if isinstance(error, StartupError) else LOAD_FAILED_STATUS)


def _parse_model(
    text: str, settings: ServerSettings, progress: ProgressLine | None
) -> tuple[str, str]:
    """Split ``NAME=LOCATION``; without a name, fetch the archive and use its manifest's."""
    name, separator, location = text.partition("=")
    # The first = of a URL is in its query, or in #sha256=.
    if separator and "/" not in name and "#" not in name:
        if not name or not location:
            raise ConfigError(
                f"--models {name}={shown(location)}: expected NAME=PATH, such as crepe=crepe.model"
            )
        return name, location
    options = fetch_options(settings, progress)
    path = fetch(text, options)
    with opening(text, path, options):
        return read_manifest(path, name=file_name(text)).model_name, text


def _sagemaker_models(environment: Mapping[str, str], handler: str) -> list[tuple[str, str]]:
    """Return the models that SageMaker has put into the container, named by their manifests.

    Raises:
        ConfigError: There are none.
    """
    folder = Path(environment.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "model"
    found = find_models(folder) if folder.is_dir() else []
    if not found:
        raise ConfigError(
            f"no model to serve: {folder} holds neither a .model or .mar file nor any other model"
        )
    return [(read_manifest(path, handler).model_name, str(path)) for path in found]


def _announce(server: Server) -> None:
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
    grpc = f"gRPC on {host}:{server.grpc_port}\n" if server.grpc_port else ""
    management = (
        f"Management on {server.management_url}/models\n\n" if server.management_port else ""
    )
    click.echo(
        f"\nmxnet-model-server {__version__}, listening on {base}\n\n"
        + "\n".join(f"  {line}" for line in lines)
        + f"\n\n{grpc}{management}Try:\n{example}\n",
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


def _print_config(config: Config) -> None:
    """Print every value with its origin; an archive that is not local contributes none."""

    def with_archive(model: ModelConfig) -> ModelSettings:
        serving = ServingDefaults()
        with contextlib.suppress(MMSError):
            # Printing the configuration downloads nothing.
            path = cached(model.path, fetch_options(config.server))
            serving = read_manifest(path).serving if path else serving
        return with_archive_defaults(model.settings, serving, model.origins)

    click.echo(to_yaml(config, with_archive), nl=False)


def _report(error: MMSError) -> None:
    """Print an error for a person: the traceback of user code first, the message last."""
    if error.detail and error.detail.traceback and error.detail.stage == "load":
        click.echo(printable(error.detail.traceback), err=True)
        click.echo("", err=True)
    click.echo(printable(f"Error: {error}"), err=True)


if __name__ == "__main__":
    main()

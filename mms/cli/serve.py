"""``mxnet-model-server`` and ``multi-model-server``: serve models over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import uvloop

from mms.archive.manifest import ServingDefaults
from mms.archive.reader import read_manifest
from mms.cli import background
from mms.cli.announce import announce
from mms.cli.models import Finder, sagemaker_models
from mms.cli.options import Command
from mms.cli.progress import ProgressLine
from mms.cli.terminal import printable
from mms.config.build import Config, ModelConfig, build_config
from mms.config.declaration import Rules, Unit, rules_of
from mms.config.environment import PROPERTIES_VARIABLE
from mms.config.layers import Layer, resolve, with_archive_defaults
from mms.config.printed import to_yaml
from mms.config.settings import ENV_PREFIX, ModelSettings, ServerSettings
from mms.errors import ConfigError, MMSError, StartupError
from mms.fetch.download import cached
from mms.log import configure_logging
from mms.server import Server
from mms.serving.archives import fetch_options
from mms.version import __version__

logger = logging.getLogger("mms.server")

#: Exit status if a model fails with an error that is not a start-up error (out of memory, say).
LOAD_FAILED_STATUS = 3
#: Where 1.x looks for its configuration if none is named.
_PROPERTIES = "config.properties"
_VERBS = ("serve", "start", "dev")
_HELP = """Serve MXNet, Gluon and ONNX models over HTTP.

\b
mxnet-model-server --models crepe=character_cnn.model
curl http://127.0.0.1:8080/predictions/crepe -H 'content-type: application/json' -d '[...]'

WORDS are models, as after --models; or one of these, first:

\b
dev FOLDER  serve a model under development: one worker, reload on each edit, show errors
serve       what SageMaker starts; without models, serve the archives in /opt/ml/model
start       what images of 1.x start; the same as no word

An option may be shortened to any unambiguous beginning.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """How the command was called.

    Attributes:
        program: The command's name.
        args: Its arguments.
        is_marked: Whether this is the process that serves, started by one with 1.x's options.
    """

    program: str
    args: tuple[str, ...]
    is_marked: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Original:
    """The options of 1.x.

    Attributes:
        start: Serve; behind the starter unless `foreground`.
        stop: End what `start` has started.
        foreground: Serve in the foreground.
        mms_config: A ``config.properties``.
        log_config: A configuration of log4j; ignored.
        vmargs: Arguments for Java; ignored.
    """

    start: bool
    stop: bool
    foreground: bool
    mms_config: str | None
    log_config: str | None
    vmargs: str | None

    @property
    def is_used(self) -> bool:
        """Whether any is set."""
        return any((self.start, self.foreground, self.mms_config, self.log_config, self.vmargs))

    def notes(self) -> list[str]:
        """Return what was ignored."""
        notes = []
        if self.log_config:
            notes.append(
                f"--log-config {self.log_config} is ignored: this server has no log4j; see "
                "--log-level, --log-file, --log-format and --access-log"
            )
        if self.vmargs:
            notes.append("--vmargs is ignored: this server has no Java")
        return notes


def main() -> None:
    """Run ``mxnet-model-server`` (console entry point)."""
    _main("mxnet-model-server")


def multi_model_server() -> None:
    """Run ``multi-model-server``, the name of 1.x (console entry point)."""
    _main("multi-model-server")


def _main(program: str) -> None:
    args = sys.argv[1:]
    is_marked = args[:1] == [background.MARK]
    args = args[1:] if is_marked else args
    command.main(args=args, prog_name=program, obj=Call(program, tuple(args), is_marked))


def _settings_options(command: Command) -> Command:
    """Add one flag per setting to the command, from the settings' own declarations."""
    groups = []
    for title, cls in (("Each model", ModelSettings), ("The server", ServerSettings)):
        fields = dataclasses.fields(cls)
        command.params += [_option(f) for f in fields]
        groups.append((title, [f.name for f in fields]))
    command.groups = [("As in 1.x", [f.name for f in dataclasses.fields(Original)]), *groups]
    return command


def _option(setting: dataclasses.Field[Any]) -> click.Option:
    flag = f"--{setting.name.replace('_', '-')}"
    is_flag = isinstance(setting.default, bool)
    shown = f" [default: {setting.default}]" if setting.default not in ("", (), None) else ""
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if is_flag else flag, setting.name],
        type=None if is_flag else _flag_type(setting),
        default=None,
        metavar=None if is_flag else _metavar(setting),
        help=f"{rules_of(setting).help}{shown}",
    )


def _flag_type(setting: dataclasses.Field[Any]) -> Any:
    """Return the type by which click checks a flag; lists and units are parsed with the config."""
    is_plain = rules_of(setting).unit is None
    return type(setting.default) if is_plain and type(setting.default) in (int, float) else str


def _metavar(setting: dataclasses.Field[Any]) -> str:
    rules: Rules = rules_of(setting)
    if rules.choices:
        return f"[{'|'.join(filter(None, rules.choices))}]"
    if rules.unit is not None:
        return "SIZE" if rules.unit is Unit.BYTES else "TIME"
    return "LIST" if isinstance(setting.default, tuple) else type(setting.default).__name__.upper()


@_settings_options
@click.command(
    cls=Command,
    help=_HELP,
    epilog="Every flag can also be set in the environment: --batch-size is MMS_BATCH_SIZE.",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "--models",
    multiple=True,
    metavar="NAME=LOCATION ...",
    help="Models to serve, as pairs of a name and a .model or .mar file, a folder, or an "
    "http(s)://, s3:// or file:// URL; several may follow one --models. Without a name, the name "
    "in the archive is used. A location may be relative to --model-store; ALL is all of it.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar=f"{ENV_PREFIX}CONFIG",
    help="YAML file with settings and models.",
)
@click.option("--print-config", is_flag=True, help="Print every setting and its origin, and exit.")
@click.option(
    "--start", is_flag=True, help="Serve in the background: return at once. Ended by --stop."
)
@click.option("--stop", is_flag=True, help="End the server that --start has started.")
@click.option("--foreground", is_flag=True, help="With --start: serve in the foreground.")
@click.option(
    "--mms-config", metavar="FILE", help="Configuration of 1.x, a config.properties; or sagemaker."
)
@click.option("--log-config", metavar="FILE", help="Ignored: a configuration of log4j.")
@click.option("--vmargs", metavar="ARGS", help="Ignored: arguments for Java.")
@click.option("--restart", is_flag=True, hidden=True)
@click.argument("words", nargs=-1, metavar="[WORDS]...")
@click.version_option(__version__, prog_name="mxnet-model-server")
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[str, ...],
    config_file: Path | None,
    print_config: bool,
    start: bool,
    stop: bool,
    foreground: bool,
    mms_config: str | None,
    log_config: str | None,
    vmargs: str | None,
    restart: bool,
    words: tuple[str, ...],
    **flags: Any,
) -> None:
    """Serve models, or do what the options say instead."""
    call: Call = context.obj or Call("mxnet-model-server", (), False)
    original = Original(start, stop, foreground, mms_config, log_config, vmargs)
    if restart:
        raise click.UsageError("--restart: use --stop and then --start, as with 1.x", context)
    if start and stop:
        raise click.UsageError("--start and --stop exclude each other, as in 1.x", context)
    verb, words = (words[0], words[1:]) if words[:1] and words[0] in _VERBS else ("", words)
    if verb == "dev" and not (words or models):
        raise click.UsageError("dev: name the folder of the model, as in: dev FOLDER", context)
    is_original = call.is_marked or original.is_used or call.program == "multi-model-server"
    try:
        if stop:
            click.echo(background.stop())
            return
        start_up = _StartUp(
            (*words, *models), config_file, flags, original, verb, is_original, os.environ
        )
        config = start_up.read()
        if print_config:
            for note in start_up.notes(config):
                click.echo(printable(note), err=True)
            _print_config(start_up.complete(config, None))
        elif is_original and not call.is_marked:
            _launch(call, foreground or bool(verb))
        else:
            with background.noted() if call.is_marked else contextlib.nullcontext():
                _serve(start_up, config)
    except MMSError as error:
        _report(error)
        sys.exit(error.exit_status if isinstance(error, StartupError) else LOAD_FAILED_STATUS)


@dataclasses.dataclass(frozen=True, slots=True)
class _StartUp:
    """What was asked for, from which the configuration is built, and built again on SIGHUP."""

    texts: tuple[str, ...]
    config_file: Path | None
    flags: dict[str, Any]
    original: Original
    verb: str
    is_original: bool
    environment: Mapping[str, str]

    def read(self, pairs: list[tuple[str, str]] | None = None) -> Config:
        """Return the configuration, without models of the command line unless given."""
        if self.config_file and self.config_file.suffix == ".properties":
            raise ConfigError(
                f"{self.config_file}: --config reads YAML; for a config.properties of 1.x, use "
                f"--mms-config {self.config_file}"
            )
        return build_config(
            pairs or [],
            self.flags,
            self.environment,
            self.config_file,
            self._properties(),
            self._preset(),
        )

    def complete(self, first: Config, progress: ProgressLine | None) -> Config:
        """Return the configuration with the models of the command line, or 1.x's configuration."""
        return self.read(self.find(first, progress))

    def find(self, first: Config, progress: ProgressLine | None) -> list[tuple[str, str]]:
        """Return the names and locations of the models that are not in the YAML file."""
        shared, _ = resolve(ModelSettings, first.layers)
        texts = self.texts or first.load_models
        pairs = Finder(first.server, shared.handler, progress).find(texts)
        if self.verb == "serve" and not (pairs or first.models or first.server.multi_model):
            return sagemaker_models(self.environment, shared.handler)
        return pairs

    def notes(self, config: Config) -> list[str]:
        """Return what is ignored."""
        return [*self.original.notes(), *config.notes]

    def may_lack_models(self, config: Config) -> bool:
        """Return whether the server may start without a model."""
        settings = config.server
        return bool(
            self.is_original or settings.model_store or settings.allowed_urls or settings.state_file
        )

    def _properties(self) -> str:
        named = self.environment.get(PROPERTIES_VARIABLE) or self.original.mms_config
        if named:
            return str(named)
        return _PROPERTIES if self.is_original and Path(_PROPERTIES).is_file() else ""

    def _preset(self) -> Layer | None:
        if self.verb == "dev":
            return Layer("dev", {"workers": 1, "watch": True, "debug_errors": "on"})
        return Layer("1.x", {"keep_going": True}) if self.is_original else None


def _launch(call: Call, in_foreground: bool) -> None:
    """Start the process that serves, which carries the mark of 1.x's."""
    if in_foreground:
        background.run_in_foreground(call.args)
    else:
        pid = background.run_in_background(call.args)
        click.echo(
            f"{call.program} started in the background as process {pid}, as 1.x's --start did; "
            f"{call.program} --stop ends it, and --foreground keeps it in the foreground",
            err=True,
        )


def _serve(start_up: _StartUp, first: Config) -> None:
    server = first.server
    configure_logging(
        server.log_level,
        server.log_format,
        Path(server.log_file) if server.log_file else None,
        server.log_rotation_time or None,
    )
    for note in start_up.notes(first):
        logger.warning("%s", note)
    progress = ProgressLine(sys.stderr) if sys.stderr.isatty() else None
    pairs = start_up.find(first, progress)

    def read() -> Config:
        return start_up.read(pairs)

    config = read()
    if not (config.models or start_up.may_lack_models(config)):
        raise ConfigError("no model to serve; set --models NAME=PATH")
    uvloop.run(Server(config, _announce, read, progress).run())


def _announce(server: Server) -> None:
    announce(server)
    background.note_ready()


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

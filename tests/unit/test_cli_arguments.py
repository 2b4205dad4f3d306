"""Arguments as 0.4 and 1.x took them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from mms.cli import export, serve
from mms.cli.options import Command, complete, expand

SERVER_OPTIONS = {
    name: parameter
    for parameter in serve.command.get_params(click.Context(serve.command))
    if isinstance(parameter, click.Option)
    for name in (*parameter.opts, *parameter.secondary_opts)
    if name.startswith("--")
}
EXPORT_OPTIONS = [
    name for parameter in export.command.params for name in parameter.opts if name[:2] == "--"
]

CASES = [
    ("", ""),
    ("--models a=x", "--models a=x"),
    ("--models a=x b=y", "--models a=x --models b=y"),
    ("--models a=x b=y --port 1", "--models a=x --models b=y --port 1"),
    ("--port 1 --models a=x b=y", "--port 1 --models a=x --models b=y"),
    ("--models a=x --models b=y c=z", "--models a=x --models b=y --models c=z"),
    ("--models x.model y.model", "--models x.model --models y.model"),
    ("--models=a=x b=y --port 1", "--models a=x --models b=y --port 1"),
    ("--models", "--models"),
    ("--port 1", "--port 1"),
    ("--port=1 --host=h", "--port=1 --host=h"),
    ("--model a=x b=y --start", "--models a=x --models b=y --start"),
    ("--mode=a=x b=y", "--models a=x --models b=y"),
    ("--start --models ALL --model-s /m", "--start --models ALL --model-store /m"),
    ("x.model --por 1", "x.model --port 1"),
    ("--watch x.model", "--watch x.model"),
    ("--management-port -1 --models a=x", "--management-port -1 --models a=x"),
    ("--models a=x -h", "--models a=x -h"),
    ("--models a=x -- --odd", "--models a=x -- --odd"),
]


@pytest.mark.parametrize(("given", "expanded"), CASES)
def test_several_values_may_follow_one_option_and_options_may_be_short(
    given: str, expanded: str
) -> None:
    assert expand(given.split(), SERVER_OPTIONS) == expanded.split()


def test_paths_with_spaces_stay_whole(tmp_path: Path) -> None:
    path = f"{tmp_path}/my model.model"
    assert expand(["--models", f"a={path}"], SERVER_OPTIONS) == ["--models", f"a={path}"]


BEGINNINGS = [
    # Unambiguous in 0.4, whatever options there are now.
    *(("--model", "--models"), ("--serv", "--service"), ("--log-f", "--log-file")),
    *(("--metrics", "--metrics-write-to"), ("--p", "--port"), ("--log-r", "--log-rotation-time")),
    *(("--he", "--help"), ("--ho", "--host"), ("--ge", "--gen-api"), ("--gp", "--gpu")),
    # In 1.x.
    *(
        ("--star", "--start"),
        ("--sto", "--stop"),
        ("--f", "--foreground"),
        ("--mm", "--mms-config"),
    ),
    *(("--log", "--log-config"), ("--model-", "--model-store")),
    # Here.
    *(("--batch", "--batch-size"), ("--no-wat", "--no-watch"), ("--print", "--print-config")),
    *(("--port", "--port"), ("--gpu", "--gpu"), ("--no-such", "--no-such")),
]


@pytest.mark.parametrize(("typed", "option"), BEGINNINGS)
def test_a_beginning_is_the_option_that_it_was_in_0_4_and_1_x(typed: str, option: str) -> None:
    assert complete(typed, SERVER_OPTIONS) == option


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        *(("--service", "--service-file-path"), ("--service-file", "--service-file-path")),
        *(("--model-n", "--model-name"), ("--model-pa", "--model-path")),
        *(("--export", "--export-path"), ("--f", "--force")),
    ],
)
def test_so_it_is_for_the_exporter(typed: str, option: str) -> None:
    assert complete(typed, EXPORT_OPTIONS) == option


@pytest.mark.parametrize(
    ("typed", "candidates"),
    [
        ("--max-w", "--max-worker-age, --max-worker-memory, --max-workers"),
        ("--st", "--start, --state-file, --stop"),
    ],
)
def test_an_ambiguous_beginning_is_told_with_its_candidates(typed: str, candidates: str) -> None:
    with pytest.raises(click.UsageError, match=f"'{typed}' is ambiguous: it could be {candidates}"):
        complete(typed, SERVER_OPTIONS)


@pytest.mark.parametrize("args", ["--log-file --models a=x", "--models a=x --port"])
def test_an_option_is_no_value_of_the_one_before(args: str) -> None:
    # argparse: "expected one argument".
    with pytest.raises(click.UsageError, match="needs a value"):
        expand(args.split(), SERVER_OPTIONS)


def test_a_shell_completes_options() -> None:
    completion = ShellComplete(serve.command, {}, "mxnet-model-server", "_COMPLETE")
    found = completion.get_completions(["--models", "a=x", "b=y"], "--log-f")
    assert [item.value for item in found] == ["--log-format", "--log-file"]


COMMANDS = {"mxnet-model-server": serve.command, "mxnet-model-export": export.command}


@pytest.mark.parametrize("program", COMMANDS)
def test_help_has_no_markup_and_an_example_on_each_line(program: str) -> None:
    text = shown_help(program)
    assert "\\b" not in text
    assert "`" not in text
    assert "\x08" not in text
    examples = [line.strip() for line in text.splitlines() if line.startswith(f"  {program} ")]
    assert examples
    assert not any("curl" in line for line in examples)


HELP = """\
Usage: mxnet-model-server [OPTIONS] [WORDS]...

  Serve MXNet, Gluon and ONNX models over HTTP.

  mxnet-model-server --models crepe=character_cnn.model
  curl http://127.0.0.1:8080/predictions/crepe -H 'content-type: application/json' -d '[...]'

  WORDS are models, as after --models; or one of these, first:

  dev FOLDER  serve a model under development: one worker, reload on each edit, show errors
  serve       what SageMaker starts; without models, serve the archives in /opt/ml/model
  start       what images of 1.x start; the same as no word

  An option may be shortened to any unambiguous beginning.

Options:
  --models NAME=LOCATION ...  Models to serve, as pairs of a name"""


def test_the_beginning_of_help_is_as_here() -> None:
    assert shown_help("mxnet-model-server").startswith(HELP)


def test_help_shows_choices_and_every_option_once() -> None:
    text = shown_help("mxnet-model-server")
    assert "--log-format [text|json]" in text
    assert "--log-level [NOTSET|DEBUG|INFO|WARNING|ERROR|CRITICAL]" in text
    assert "--load [eager|lazy]" in text
    for parameter in serve.command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            found = [
                line for line in text.splitlines() if line.startswith(f"  {parameter.opts[0]} ")
            ]
            assert len(found) == 1, parameter.opts


def shown_help(program: str) -> str:
    command: Command = COMMANDS[program]
    result = CliRunner().invoke(command, ["--help"], prog_name=program, terminal_width=100)
    assert result.exit_code == 0
    return result.output

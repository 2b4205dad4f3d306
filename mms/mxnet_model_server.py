"""PUBLIC: 0.4's entry points, for scripts that start the server themselves."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mms.arg_parser import ArgParser
from mms.cli import serve

_COMMAND = "mxnet-model-server"


def start_serving(app_name: str = "mms", args: Sequence[str] | None = None) -> None:
    """Serve until the process is asked to stop, as ``mxnet-model-server`` does.

    Args:
        app_name: Ignored.
        args: Options of that command; those of this process by default.
    """
    if args:
        sys.argv = [_COMMAND, *args]
    serve.main()


class MMS:
    """A server with 0.4's options.

    Args:
        app_name: Ignored.
        args: What `mms.arg_parser.ArgParser` has parsed; the options of this process by default.
        models: Ignored: the server opens its models by itself.
    """

    def __init__(
        self, app_name: str = "mms", args: argparse.Namespace | None = None, models: Any = None
    ) -> None:
        self.args = args or ArgParser.extract_args()
        self.models = models

    def start_model_serving(self) -> None:
        """Serve until the process is asked to stop."""
        start_serving(args=_options(self.args))

    def create_app(self) -> NoReturn:
        """Refuse: this server is no WSGI application.

        Raises:
            NotImplementedError: With the command to run in place of gunicorn.
        """
        raise NotImplementedError(
            "this server is no WSGI application, and needs no gunicorn: it has worker processes of "
            f"its own (--workers); run: {shlex.join([_COMMAND, *_options(self.args)])}"
        )


def _options(args: argparse.Namespace) -> list[str]:
    """Return the options from which a namespace was parsed."""
    values: Mapping[str, Any] = vars(args)
    options = [f"{name}={location}" for name, location in values["models"].items()]
    for name, value in values.items():
        if name != "models" and value is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    return ["--models", *options]

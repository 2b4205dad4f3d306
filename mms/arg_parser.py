"""PUBLIC: 0.4's parsers of the commands' options, for scripts that start the server themselves.

The commands have parsers of their own, with more options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

#: What 0.4's server takes besides its models: a name and what it is.
_SERVER_OPTIONS = {
    "service": "service file for all models",
    "gen-api": "language of a client to generate",
    "port": "port to listen on; 8080 by default",
    "host": "address to listen on; 127.0.0.1 by default",
    "gpu": "number of the GPU to run on; the CPU by default",
    "log-file": "file to log to",
    "log-rotation-time": "when to start a new log file: '1 H', 'midnight', 'W0'",
    "log-level": "DEBUG, INFO, WARNING, ERROR, CRITICAL or NOTSET",
}


class ArgParser:
    """Parsers of 0.4's options."""

    @staticmethod
    def mms_parser() -> argparse.ArgumentParser:
        """Return the parser of the server's options; ``models`` is a dict of locations by name."""
        parser = argparse.ArgumentParser(prog="mxnet-model-server")
        parser.add_argument(
            "--models",
            required=True,
            action=StoreDictKeyPair,
            metavar="NAME=LOCATION",
            nargs="+",
            help="models to serve",
        )
        for name, text in _SERVER_OPTIONS.items():
            parser.add_argument(f"--{name}", help=text)
        parser.add_argument(
            "--metrics-write-to",
            default="log",
            choices=["log", "csv", "cloudwatch"],
            help="where to write metrics; log by default",
        )
        return parser

    @staticmethod
    def export_parser() -> argparse.ArgumentParser:
        """Return the parser of the exporter's options."""
        parser = argparse.ArgumentParser(prog="mxnet-model-export")
        parser.add_argument("--model-name", required=True, help="name of the model")
        parser.add_argument("--model-path", required=True, help="folder of the model's files")
        parser.add_argument("--service-file-path", help="service file")
        return parser

    @staticmethod
    def extract_args(args: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the server's options: those given, or the process's own."""
        return ArgParser.mms_parser().parse_args(args or None)


class StoreDictKeyPair(argparse.Action):
    """Stores ``NAME=LOCATION`` as a dict."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the pairs of one ``--models``; of several, the last one counts."""
        pairs = [value.partition("=") for value in values or ()]
        for name, sign, _ in pairs:
            if not sign:
                parser.error(f"--models: {name} has no name; write NAME={name}")
        namespace.models = {name: location for name, _, location in pairs}

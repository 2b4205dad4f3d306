"""``model-archiver``: pack a folder with a handler into an archive of MMS 1.x."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mms.cli.terminal import printable
from mms.errors import ExportError
from mms.export.mar import RUNTIMES, ArchiveFormat, write_mar
from mms.version import __version__

_CONVERTED = ".onnx"


def main() -> None:
    """Run the command (console entry point)."""
    args = _parser().parse_args()
    folder = Path(args.model_path)
    try:
        if args.convert:
            _refuse_conversion(folder)
        target = write_mar(
            args.model_name,
            folder,
            args.handler,
            Path(args.export_path),
            args.runtime,
            ArchiveFormat(args.archive_format),
            args.force,
        )
    except ExportError as error:
        print(printable(f"Error: {error}"), file=sys.stderr)
        sys.exit(1)
    print(printable(f"wrote {target}"))


def _parser() -> argparse.ArgumentParser:
    # As in 1.x, options may be abbreviated, which argparse does by itself.
    parser = argparse.ArgumentParser(
        prog="model-archiver",
        description="Pack a folder with a handler of MMS 1.x. Models without one are packed by "
        "mxnet-model-export.",
    )
    parser.add_argument(
        "--model-name", required=True, help="name of the model, and of the file to write"
    )
    parser.add_argument("--model-path", required=True, help="folder with the model's files")
    parser.add_argument(
        "--handler",
        required=True,
        help="module:function in that folder, or a module with one class",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default=RUNTIMES[0],
        help="for the manifest; this server runs Python 3, whichever is named",
    )
    parser.add_argument(
        "--export-path", default=".", help="existing folder to write to; the current one by default"
    )
    parser.add_argument(
        "--archive-format",
        choices=[archive_format.value for archive_format in ArchiveFormat],
        default=ArchiveFormat.MAR.value,
        help="default: NAME.mar; tgz: NAME.tar.gz; no-archive: a folder NAME",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace what is there")
    parser.add_argument(
        "-c",
        "--convert",
        action="store_true",
        help=f"refused for a folder with a {_CONVERTED} file, which runs as it is",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _refuse_conversion(folder: Path) -> None:
    """Refuse ``--convert`` where it would have to do something.

    Raises:
        ExportError: There is an ONNX file.
    """
    found = sorted(folder.glob(f"*{_CONVERTED}"))
    if found:
        raise ExportError(
            f"{found[0]}: is not converted, since MXNet's converter reads no current ONNX file; "
            "pack it as it is, for a handler that runs it on onnxruntime, or with "
            "mxnet-model-export, which needs no handler"
        )


if __name__ == "__main__":
    main()

"""A symbol and its parameters: ``PREFIX-symbol.json`` with ``PREFIX-0000.params``.

Checkpoints of Module, ``HybridBlock.export``, SageMaker's algorithms, GluonCV and InsightFace are
all such a pair; `mms.archive.artefacts.families` tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.families import parts_of
from mms.archive.artefacts.parts import assemble, beside, contents_of, top_files
from mms.archive.parameters import read_shapes
from mms.archive.symbol import read_symbol
from mms.errors import ArchiveError

SYMBOL_SUFFIX, PARAMETERS_SUFFIX = "-symbol.json", ".params"
_PARAMETERS = re.compile(r"(?P<prefix>.+?)(-(?P<epoch>\d{1,8}))?\.params")


def recognise(folder: Path, name: str) -> Artefact | None:
    """Return the model of a folder with one symbol, whatever else is in it.

    Raises:
        ArchiveError: There are several symbols, or the parameters are missing.
    """
    names = top_files(folder)
    prefixes = [file.removesuffix(SYMBOL_SUFFIX) for file in names if _is_symbol(file)]
    if not prefixes:
        return None
    epochs = _epochs(names)
    complete = [prefix for prefix in prefixes if prefix in epochs]
    if len(complete) > 1:
        choices = ", ".join(str(folder / prefix) for prefix in complete[:8])
        raise ArchiveError(
            f"{folder}: {len(complete)} models are in it ({', '.join(complete[:8])}); name one "
            f"of them: {choices}"
        )
    if not complete:
        prefix = prefixes[0]
        other = f", not {next(iter(epochs))}" if epochs else ""
        raise ArchiveError(
            f"{folder}: the symbol {prefix}{SYMBOL_SUFFIX} has no parameter file; add "
            f"{prefix}-0000.params: symbol and parameters have the same prefix{other}"
        )
    return _pair(folder, name, complete[0], epochs[complete[0]], None, contents_of(folder))


def recognise_prefix(folder: Path, name: str, prefix: str, epoch: int | None) -> Artefact:
    """Return the model with a prefix, one of any number in its folder.

    Args:
        folder: Its folder; of the other files, only those that describe a model belong to it.
        name: Its name.
        prefix: What its files begin with.
        epoch: Number of its parameter file; None means the highest.

    Raises:
        ArchiveError: A file is missing.
    """
    epochs = _epochs(top_files(folder)).get(prefix, {})
    symbol = f"{prefix}{SYMBOL_SUFFIX}"
    if not (folder / symbol).is_file():
        raise ArchiveError(
            f"{folder / prefix}: no {symbol} beside the parameters; add it, or write a service "
            "for the Gluon network and serve the folder with it and a signature.json"
        )
    if not epochs:
        raise ArchiveError(
            f"{folder / symbol}: no parameter file beside the symbol; add {prefix}-0000.params"
        )
    return _pair(folder, name, prefix, epochs, epoch, beside(folder, symbol))


def prefix_of(file: str) -> tuple[str, int | None] | None:
    """Return prefix and epoch of a symbol or parameter file by its name; None for any other."""
    if _is_symbol(file):
        return file.removesuffix(SYMBOL_SUFFIX), None
    match = _PARAMETERS.fullmatch(file)
    if match is None:
        return None
    return match["prefix"], int(match["epoch"]) if match["epoch"] else None


def _pair(
    folder: Path,
    name: str,
    prefix: str,
    epochs: Mapping[int, str],
    epoch: int | None,
    contents: dict[str, Path],
) -> Artefact:
    if epoch is not None and epoch not in epochs:
        have = ", ".join(str(number) for number in sorted(epochs)[-8:])
        raise ArchiveError(f"{folder / prefix}: no parameters of epoch {epoch}; it has {have}")
    chosen = max(epochs) if epoch is None else epoch
    file = epochs[chosen]
    symbol = f"{prefix}{SYMBOL_SUFFIX}"
    # A file without the number of an epoch gets one: services read it from the name.
    parameters = file if chosen >= 0 else f"{prefix}-0000.params"
    others = {other for number, other in epochs.items() if number != chosen}
    contents = {key: path for key, path in contents.items() if key not in {*others, file}}
    contents[parameters] = folder / file
    parts = parts_of(
        contents,
        symbol,
        parameters,
        read_symbol(contents[symbol]),
        read_shapes(contents[parameters]),
    )
    artefact = assemble(folder, name, contents, parts)
    if others and epoch is None:
        note = f"{file} is the newest of {len(epochs)} epochs; PREFIX@EPOCH serves another"
        artefact = _with_note(artefact, note)
    return artefact


def _with_note(artefact: Artefact, note: str) -> Artefact:
    return Artefact(
        artefact.family,
        artefact.manifest,
        artefact.files,
        artefact.documents,
        (*artefact.notes, note),
    )


def _is_symbol(file: str) -> bool:
    return file.endswith(SYMBOL_SUFFIX) and file != SYMBOL_SUFFIX


def _epochs(names: list[str]) -> dict[str, dict[int, str]]:
    """Return the parameter files by prefix and epoch; -1 for one without an epoch."""
    epochs: dict[str, dict[int, str]] = {}
    for file in names:
        match = _PARAMETERS.fullmatch(file)
        if match:
            number = int(match["epoch"]) if match["epoch"] else -1
            epochs.setdefault(match["prefix"], {})[number] = file
    return epochs

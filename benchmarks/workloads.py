"""What is measured: for each workload its archive, its requests, and what it is compared with."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Level, Request
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.references import Reference, bare_http, bare_model
from mms.archive.reader import Archive, open_archive
from mms.export.package import export_model

_SERVICES = Path(__file__).parent / "services"
#: Batches of models: large enough to gain from a joint forward, small enough for two cores.
_BATCH_SIZE = 8
_LARGE_BODY_BYTES = 1 << 20
CLOSED = (Level(1), Level(16), Level(64))
OPEN = (Level(share=0.5), Level(share=0.8), Level(share=0.95))


@dataclass(frozen=True, slots=True)
class Archives:
    """Archives that `make` builds: the character CNN, its int8 form, and the image net."""

    crepe: Path
    int8: Path
    image: Path


@dataclass(frozen=True, slots=True)
class Comparison:
    """A reference of a workload.

    Attributes:
        start: Starts it.
        levels: Those at which it is measured.
    """

    start: Callable[[], AbstractContextManager[Reference]]
    levels: tuple[Level, ...] = CLOSED + OPEN


@dataclass(frozen=True, slots=True)
class Workload:
    """One model, how it is served, and how it is asked."""

    name: str
    archive: Path
    request: Request
    comparisons: tuple[Comparison, ...]
    batch_size: int = 1


def noop(_: Archives, folder: Path) -> Workload:
    """A service that does nothing, against a handler that answers a constant."""
    source = folder / "noop"
    source.mkdir()
    signature = {
        "inputs": [{"data_name": "data", "data_shape": [0]}],
        "input_type": "application/json",
        "outputs": [{"data_name": "ok", "data_shape": [0]}],
        "output_type": "application/json",
    }
    (source / "signature.json").write_text(json.dumps(signature))
    archive = export_model("noop", source, _SERVICES / "noop.py", folder).path
    request = Request("application/json", b'{"x":[1,2,3,4]}')
    reference = Comparison(lambda: bare_http("bare handler", "benchmarks.bare_http", request))
    return Workload("noop", archive, request, (reference,))


def crepe(archives: Archives, folder: Path) -> Workload:
    """The character CNN in fp32, against bare MXNet."""
    return _model("crepe", archives.crepe, folder, "bare fp32")


def crepe_int8(archives: Archives, folder: Path) -> Workload:
    """The character CNN in int8, against bare MXNet with the same network and with fp32's."""
    fp32 = _open(archives.crepe, folder).folder
    # In an open loop the rates of int8 would only overrun it.
    against_fp32 = Comparison(lambda: bare_model("bare fp32", fp32, _BATCH_SIZE), CLOSED)
    return _model("crepe-int8", archives.int8, folder, "bare int8", against_fp32)


def image(archives: Archives, folder: Path) -> Workload:
    """A small image net with JPEG bodies, against bare MXNet that decodes and resizes, too."""
    return _model("image", archives.image, folder, "bare fp32")


def large(_: Archives, folder: Path) -> Workload:
    """1 MB bodies to a 1.x handler, against the same bytes over a bare socket."""
    archive = folder / "large.mar"
    manifest = {
        "specificationVersion": "1.0",
        "implementationVersion": "1.0",
        "modelServerVersion": "1.0",
        "runtime": "python",
        "model": {"modelName": "large", "handler": "length:handle"},
    }
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        file.write(_SERVICES / "length.py", "length.py")
    request = Request("application/octet-stream", bytes(_LARGE_BODY_BYTES))
    reference = Comparison(lambda: bare_http("bare socket", "benchmarks.bare_bytes", request))
    return Workload("large", archive, request, (reference,))


#: By the names for `--workload`.
WORKLOADS: dict[str, Callable[[Archives, Path], Workload]] = {
    "noop": noop,
    "crepe": crepe,
    "crepe-int8": crepe_int8,
    "image": image,
    "large": large,
}


def _model(
    name: str, archive: Path, folder: Path, reference: str, *further: Comparison
) -> Workload:
    """Return the workload of an archive with a sample request, which all requests repeat."""
    opened = _open(archive, folder)
    sample = opened.manifest.serving.sample
    assert sample is not None  # noqa: S101 - our examples have one
    same = Comparison(lambda: bare_model(reference, opened.folder, _BATCH_SIZE))
    request = Request(sample.content_type, (opened.folder / sample.file).read_bytes())
    return Workload(name, archive, request, (same, *further), _BATCH_SIZE)


def _open(path: Path, folder: Path) -> Archive:
    if not path.exists():
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        raise BenchmarkError(f"{path} is missing; build it with: make {name}")
    return open_archive(path, folder)

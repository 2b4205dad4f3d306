"""SageMaker's model folders, made as its containers make them, and laid out to be served."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.archive.artefacts.artefact import Artefact

#: What the container's default save function writes for a Module: three files named model.
_SAVED = """
import json, sys
from mms.engines.imports import import_mxnet
mx = import_mxnet()
mx.random.seed(7)
data = mx.sym.var("data")
net = mx.sym.Flatten(data)
net = mx.sym.FullyConnected(net, num_hidden=4, name="hidden")
net = mx.sym.BatchNorm(mx.sym.Activation(net, act_type="tanh"), name="norm", fix_gamma=False)
net = mx.sym.FullyConnected(net, num_hidden=3, name="fc")
net = mx.sym.SoftmaxOutput(net, name="softmax") if "{head}" == "softmax" else net
module = mx.mod.Module(net, label_names=["softmax_label"] if "{head}" == "softmax" else None)
module.bind([("data", (8, {row}))], for_training=False)
module.init_params(mx.init.Uniform(1))
module.save_checkpoint("model", 0)
open("model-shapes.json", "w").write(json.dumps([dict(name="data", shape=[8, {row}])]))
"""
#: The bare engine: the same files, opened by MXNet alone.
_PREDICTED = """
import sys
from mms.engines.imports import import_mxnet
mx = import_mxnet()
import numpy as np
rows = np.load("rows.npy")
module = mx.mod.Module.load("model", 0, data_names=["data"], label_names=None)
module.bind([("data", rows.shape)], for_training=False)
np.save("expected.npy", module.predict(mx.io.NDArrayIter(rows, batch_size=len(rows))).asnumpy())
"""


def write_checkpoint(folder: Path, row: tuple[int, ...] = (2, 3), head: str = "softmax") -> Path:
    """Write the files of a network of three outputs; MXNet stays out of this process."""
    folder.mkdir(parents=True, exist_ok=True)
    source = _SAVED.format(row=", ".join(map(str, row)), head=head)
    subprocess.run([sys.executable, "-c", source], cwd=folder, check=True)
    return folder


def bare_predictions(folder: Path, rows: NDArray[Any], scratch: Path) -> NDArray[Any]:
    """Return what MXNet alone answers for these rows."""
    scratch.mkdir()
    for file in folder.glob("model-*"):
        (scratch / file.name).symlink_to(file)
    np.save(scratch / "rows.npy", rows.astype(np.float32))
    subprocess.run([sys.executable, "-c", _PREDICTED], cwd=scratch, check=True)
    return np.asarray(np.load(scratch / "expected.npy"))


def write_script(folder: Path, source: str, name: str = "inference.py", **files: str) -> Path:
    """Write a model of script mode: ``code/inference.py``, and other files of ``code/``."""
    code = folder / "code"
    code.mkdir(parents=True, exist_ok=True)
    (code / name).write_text(textwrap.dedent(source))
    for other, text in files.items():
        (code / other.replace("_txt", ".txt").replace("_py", ".py")).write_text(text)
    return folder


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder as ``tar -czf path -C folder .`` does."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, ".")
    return path


def lay_out(
    recognise: Callable[[Path, str], Artefact | None], source: Path, folder: Path, name: str = "m"
) -> Path:
    """Recognise a folder and lay the model out as the server does, by links."""
    artefact = recognise(source, name)
    assert artefact is not None
    links: Mapping[str, Path] = artefact.files
    for member, path in links.items():
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    for member, content in artefact.documents.items():
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def handler_of(folder: Path) -> str:
    """Return the handler that a folder's manifest names."""
    document = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())
    return str(document["model"]["handler"])

"""Build the archive of a small image net: `python -m benchmarks.image_net FOLDER`.

Architecture of the model zoo, random weights, and a generated photograph as the sample request.
What it answers means nothing; what it costs is that of a trained one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.services.image_net import CLASSES, make_net
from mms.engines.imports import import_mxnet
from mms.export.package import export_model

NAME = "image_net"
WIDTH, HEIGHT = 320, 240
_SEED = 7
_SERVICE = Path(__file__).parent / "services" / "image_net.py"
_SIGNATURE = {
    "inputs": [{"data_name": "data", "data_shape": [0, 3, 224, 224]}],
    "input_type": "image/jpeg",
    "outputs": [{"data_name": "probabilities", "data_shape": [0, CLASSES]}],
    "output_type": "application/json",
}


def write_model(folder: Path) -> None:
    """Write parameters, signature, labels and sample, ready to export."""
    mx = import_mxnet()
    mx.random.seed(_SEED)
    net = make_net()
    net.initialize(mx.init.Xavier())
    # Shapes of the parameters are known after a forward only.
    net(mx.nd.zeros((1, 3, 224, 224))).wait_to_read()
    folder.mkdir(parents=True, exist_ok=True)
    net.save_parameters(str(folder / f"{NAME}-0000.params"))
    (folder / "signature.json").write_text(json.dumps(_SIGNATURE, indent=2) + "\n")
    (folder / "synset.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    draw_photograph().save(folder / "sample.jpg", quality=90)


def draw_photograph() -> Image.Image:
    """Return smooth colours with some grain, which a JPEG of a real scene compresses like."""
    draw = np.random.default_rng(_SEED)
    coarse = draw.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    grain = draw.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(scene) + grain, 0, 255).astype(np.uint8))


def main() -> None:
    folder = Path(sys.argv[1])
    write_model(folder / NAME)
    export = export_model(NAME, folder / NAME, _SERVICE, folder, force=True)
    print(f"{export.path}: {export.path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

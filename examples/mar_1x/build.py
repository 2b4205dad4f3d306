"""Train softmax regression on handwritten digits, and pack it as an archive of MMS 1.x.

A ``.mar`` file is a zip with ``MAR-INF/MANIFEST.json`` and the handler's files; where there is no
model-archiver, Python's own zipfile writes one as well.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import click
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

HERE = Path(__file__).parent
SIDE = 8
DEEPEST = 16
MANIFEST = {
    "runtime": "python",
    "model": {
        "modelName": "digits",
        "modelVersion": "1.0",
        "description": "Handwritten digits of 8 x 8 pixels",
        "handler": "service:handle",
    },
    "modelServerVersion": "1.0",
    "implementationVersion": "1.0",
    "specificationVersion": "1.0",
}


def pack(path: Path, model: LogisticRegression) -> None:
    """Write the archive.

    Args:
        path: The ``.mar`` file to write.
        model: Trained on pixels from 0 to 1.
    """
    arrays = io.BytesIO()
    np.savez(
        arrays,
        weights=model.coef_.T.astype(np.float32),
        bias=model.intercept_.astype(np.float32),
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(MANIFEST, indent=2))
        archive.write(HERE / "service.py", "service.py")
        archive.writestr("digits.npz", arrays.getvalue())


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="build/mar_1x")
def main(output: Path) -> None:
    """Train, say how well it does on digits it has not seen, and write archive and samples."""
    pixels, digits = load_digits(return_X_y=True)
    training, unseen, training_digits, unseen_digits = train_test_split(
        pixels, digits, test_size=0.25, stratify=digits, random_state=0
    )
    model = LogisticRegression(max_iter=1000).fit(training / DEEPEST, training_digits)
    accuracy = model.score(unseen / DEEPEST, unseen_digits)
    print(f"accuracy on {len(unseen)} unseen digits: {accuracy:.3f}")
    output.mkdir(parents=True, exist_ok=True)
    pack(output / "digits.mar", model)
    surest = int(model.predict_proba(unseen / DEEPEST).max(axis=1).argmax())
    (output / "sample.json").write_text(json.dumps(unseen[surest].tolist()))
    picture = unseen[surest].reshape(SIDE, SIDE) * 255 / DEEPEST
    Image.fromarray(picture.round().astype(np.uint8)).save(output / "sample.png")
    print(f"wrote {output}/digits.mar; the samples beside it are a {unseen_digits[surest]}")


if __name__ == "__main__":
    main()

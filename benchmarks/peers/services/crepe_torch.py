"""The example's network on PyTorch, with the same parameters, for TorchServe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from crepe_text import encode, read_labels
from torch import nn


def _network(classes: int) -> nn.Sequential:
    """Return Crepe without its dropout layers, which do nothing in inference."""
    return nn.Sequential(
        *(nn.Conv1d(69, 256, 7), nn.ReLU(), nn.MaxPool1d(3)),
        *(nn.Conv1d(256, 256, 7), nn.ReLU(), nn.MaxPool1d(3)),
        *(nn.Conv1d(256, 256, 3), nn.ReLU()),
        *(nn.Conv1d(256, 256, 3), nn.ReLU()),
        *(nn.Conv1d(256, 256, 3), nn.ReLU()),
        *(nn.Conv1d(256, 256, 3), nn.ReLU(), nn.MaxPool1d(3)),
        nn.Flatten(),
        *(nn.Linear(8704, 1024), nn.ReLU()),
        *(nn.Linear(1024, 1024), nn.ReLU()),
        nn.Linear(1024, classes),
    )


class Crepe:
    """Categories of reviews, as many reviews as come in one forward pass."""

    def __init__(self, assets: str) -> None:
        torch.set_num_threads(1)
        self.labels = read_labels(assets)
        net = _network(len(self.labels))
        # One array per weight and bias, in the order of the layers; both engines lay out alike.
        with np.load(Path(assets) / "crepe.npz") as arrays:
            values = [torch.from_numpy(arrays[f"arr_{index}"]) for index in range(len(arrays))]
        net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
        # Traced and frozen, which is the faster form of the two that TorchServe takes.
        example = torch.zeros(8, 69, 1014)
        with torch.inference_mode():
            self.net = torch.jit.freeze(torch.jit.trace(net.eval(), example))
        self([("warm", "up")])

    def __call__(self, reviews: list[tuple[str, str]]) -> list[str]:
        with torch.inference_mode():
            best = self.net(torch.from_numpy(encode(reviews))).argmax(dim=1)
        return [self.labels[index] for index in best.tolist()]

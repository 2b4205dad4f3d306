"""A handler of MMS 1.x that reads handwritten digits, a whole batch of requests at a time.

A request is a JSON list of 64 numbers from 0 to 16, row by row, or a picture of a digit, light on
dark, as body or as a form field called ``data``.
"""

from __future__ import annotations

import io
import logging
import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

logger = logging.getLogger(__name__)

SIDE = 8
DEEPEST = 16


class DigitReader:
    """Softmax regression on 8 x 8 pixels."""

    def __init__(self) -> None:
        self.weights: NDArray[np.float32] | None = None
        self.bias: NDArray[np.float32] | None = None

    def initialize(self, context: Any) -> None:
        """Load the weights from the archive's folder; called once, before any request."""
        folder = context.system_properties["model_dir"]
        with np.load(os.path.join(folder, "digits.npz")) as file:
            self.weights, self.bias = file["weights"], file["bias"]
        logger.info("loaded %s, at most %d per batch", *self._description(context))

    @staticmethod
    def _description(context: Any) -> tuple[str, int]:
        model = context.manifest["model"]
        return (
            f"{model['modelName']} {model['modelVersion']}",
            context.system_properties["batch_size"],
        )

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answer each request of a batch.

        Args:
            data: For each request its form fields by name, or its body under ``body``.
            context: The request's headers, the answers' statuses and headers, and metrics.

        Returns:
            One answer per request, in the same order.
        """
        answers: list[Any] = [None] * len(data)
        rows, places = [], []
        for place, request in enumerate(data):
            try:
                rows.append(read_pixels(request))
                places.append(place)
            except ValueError as error:
                # Only this one's client is told off: the others get their answers.
                context.set_response_status(400, "Bad Request", place)
                answers[place] = {"error": str(error)}
        if rows:
            started = time.perf_counter()
            probabilities = self.predict(np.stack(rows))
            context.metrics.add_time("ForwardTime", (time.perf_counter() - started) * 1000)
            for place, row in zip(places, probabilities, strict=True):
                answers[place] = self._answer(row, place, context)
        context.metrics.add_counter("DigitsRead", len(rows))
        context.metrics.add_counter("DigitsRefused", len(data) - len(rows))
        for place in range(len(data)):
            context.set_response_header(place, "X-Batch-Size", str(len(data)))
        return answers

    def predict(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 64) pixels from 0 to 1 -> (N, 10) probabilities, float32."""
        scores = pixels @ self.weights + self.bias
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def _answer(self, row: NDArray[np.float32], place: int, context: Any) -> Any:
        digit = int(row.argmax())
        if "text/plain" in (context.get_request_header(place, "Accept") or ""):
            context.set_response_content_type(place, "text/plain")
            return f"{digit}\n"
        return {"digit": digit, "probability": round(float(row[digit]), 4)}


def read_pixels(request: dict[str, Any]) -> NDArray[np.float32]:
    """Return a request's pixels from 0 to 1, shape (64,).

    Raises:
        ValueError: It holds neither a list of 64 numbers nor a picture.
    """
    value = request.get("body", request.get("data"))
    if isinstance(value, (bytes, bytearray)):
        return _read_picture(bytes(value))
    try:
        pixels = np.asarray(value, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        pixels = np.zeros(0, dtype=np.float32)
    if pixels.shape != (SIDE * SIDE,) or not np.isfinite(pixels).all():
        raise ValueError(f"send a JSON list of {SIDE * SIDE} numbers from 0 to {DEEPEST}")
    return pixels / DEEPEST


def _read_picture(data: bytes) -> NDArray[np.float32]:
    try:
        image = Image.open(io.BytesIO(data)).convert("L").resize((SIDE, SIDE))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{len(data)} bytes that are no picture") from error
    return np.asarray(image, dtype=np.float32).reshape(-1) / 255


_reader = DigitReader()


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
    """Entry point, named in the manifest; MMS calls it without data to load the model."""
    if data is None:
        _reader.initialize(context)
        return None
    return _reader.handle(data, context)

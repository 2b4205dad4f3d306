"""PUBLIC: the name under which services of MMS 1.x import their exception."""

from __future__ import annotations


class PredictionException(Exception):
    """Raise from any stage of a service to choose the answer's status and message.

    Attributes:
        message: Sent to the client as it is.
        error_code: HTTP status, 400 to 599.
    """

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


__all__ = ["PredictionException"]

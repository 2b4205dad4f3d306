"""Decide by a trial whether a service's requests can be joined in one forward pass.

Nothing in a service states whether its network mixes rows, reuses its output arrays, or keeps one
request's values where the next one's stages find them. So two different requests are answered
alone, and then as a batch; the answers must agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from mms.errors import MMSError
from mms.wire.messages import Answer, Request
from mms.worker.agreement import MARGIN, TOLERANCE, answer_distance

#: Pairs of requests to try before giving up on finding two that the model answers.
_MAX_PAIRS = 8


class Candidate(Protocol):
    """The subject of a trial."""

    def answer_alone(self, request: Request) -> Answer | MMSError:
        """Answer a request as if it had arrived alone."""

    def answer_joined(self, requests: list[Request]) -> list[Answer | MMSError] | str:
        """Answer requests as one batch, or return why that is impossible."""

    def joined_outputs_differ(self) -> bool:
        """Return whether the last joint forward pass returned different outputs per request."""


def reason_against_joining(candidate: Candidate, pairs: Iterable[tuple[Request, Request]]) -> str:
    """Return why requests must run one at a time; "" if they can be joined."""
    refusal: MMSError | None = None
    was_answered = False
    for pair, _ in zip(pairs, range(_MAX_PAIRS), strict=False):
        alone = _answers(candidate, pair)
        if isinstance(alone, MMSError):
            refusal = refusal or alone
            continue
        was_answered = True
        reason = _try(candidate, pair, alone)
        if reason is not None:
            return reason
    if was_answered:
        return "different requests get the same answer, so a trial proves nothing"
    return (
        "there are no two requests to try it with; add a sample request (sample.json) to the "
        f"archive{f' ({refusal})' if refusal else ''}"
    )


def _answers(
    candidate: Candidate, pair: tuple[Request, Request]
) -> tuple[Answer, Answer] | MMSError | str:
    """Return each request's answer alone; an error if one of them is not answered."""
    answers = []
    for request in (pair[0], pair[1], pair[0]):
        answer = candidate.answer_alone(request)
        if isinstance(answer, MMSError):
            return answer
        answers.append(answer)
    first, second, again = answers
    if answer_distance(first, again) > TOLERANCE / MARGIN:
        return "the same request does not get the same answer twice"
    return first, second


def _try(
    candidate: Candidate,
    pair: tuple[Request, Request],
    alone: tuple[Answer, Answer] | str,
) -> str | None:
    """Return why the two cannot be joined, "" if they can, None if the trial is inconclusive."""
    if isinstance(alone, str):
        return alone
    joined = candidate.answer_joined(list(pair))
    if isinstance(joined, str):
        return joined
    apart = answer_distance(*alone)
    if apart == 0.0 and not candidate.joined_outputs_differ():
        return None
    for mine, answer in zip(alone, joined, strict=True):
        if isinstance(answer, MMSError):
            return f"two requests that are answered alone fail together: {answer}"
        distance = answer_distance(mine, answer)
        if distance > TOLERANCE or (apart > 0 and distance * MARGIN > apart):
            return "two requests get different answers together than alone"
    return ""

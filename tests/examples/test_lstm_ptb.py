"""The language model, having learnt four sentences by heart, prefers them to others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.examples.readme import EXAMPLES, URL, Example, Served, run

#: Training and loading MXNet several times; a busy machine takes its time.
pytestmark = pytest.mark.timeout(300)

ASK = f"{URL}/predictions/lstm"
#: Gives the sentences that --quick learns.
_LEARNT = """
import json, corpus, train
sentences = corpus.load().training
alike = [s for s in sentences if train.bucket_for(1 + len(s)) == train.QUICK_BUCKET]
print(json.dumps(alike[:train.QUICK_SENTENCES]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    example = Example("lstm_ptb", tmp_path_factory.mktemp("lstm_ptb"))
    example.build()
    with example.serve() as served:
        yield served


@pytest.fixture(scope="module")
def learnt() -> list[list[str]]:
    script = f"import sys; sys.path.insert(0, {str(EXAMPLES / 'lstm_ptb')!r}){_LEARNT}"
    sentences: list[list[str]] = json.loads(run(sys.executable, "-c", script))
    return sentences


def ask(served: Served, value: Any) -> tuple[int, Any]:
    return served.ask(ASK, "-H", "Content-Type: application/json", "-d", json.dumps(value))


def sentences(*texts: str) -> list[dict[str, str]]:
    return [{"input_sentence": text} for text in texts]


def test_the_readmes_requests_are_answered(served: Served) -> None:
    plain, legacy = served.readme_answers()
    for (answer,) in (plain, legacy["prediction"]):
        assert set(answer) == {"predicted", "perplexity", "next", "continuation"}
        assert len(answer["next"]) == 5
        probabilities = [entry["probability"] for entry in answer["next"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1.0001
        assert len(answer["continuation"].split()) <= 8


def test_what_was_learnt_is_likelier_than_its_words_in_another_order(
    served: Served, learnt: list[list[str]]
) -> None:
    forwards = sentences(*(" ".join(words) for words in learnt))
    backwards = sentences(*(" ".join(reversed(words)) for words in learnt))
    status, answers = ask(served, forwards + backwards)
    assert status == 200
    known, unknown = answers[: len(learnt)], answers[len(learnt) :]
    for one, other in zip(known, unknown, strict=True):
        assert 1 <= one["perplexity"] * 3 < other["perplexity"]


def test_each_word_has_a_prediction_of_the_one_after_it(
    served: Served, learnt: list[list[str]]
) -> None:
    _, answers = ask(served, sentences(*(" ".join(words) for words in learnt)))
    for words, answer in zip(learnt, answers, strict=True):
        predicted = answer["predicted"].split(" ")
        assert len(predicted) == len(words)
        if [other[0] for other in learnt].count(words[0]) == 1:
            assert predicted[0] == words[1]


def test_a_sentence_is_answered_alike_alone_and_among_longer_ones(
    served: Served, learnt: list[list[str]]
) -> None:
    short, long = "the value of the", " ".join(learnt[0] * 3)
    _, (alone,) = ask(served, sentences(short))
    _, (among, _) = ask(served, sentences(short, long))
    assert among["predicted"] == alone["predicted"]
    assert among["continuation"] == alone["continuation"]
    assert among["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-3)


def test_case_punctuation_and_numbers_are_read_as_in_training(served: Served) -> None:
    _, answers = ask(served, sentences("The value, of 12 the!", "the value of 7 the"))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "one or more sentences"),
        (["the value"], "sentence 0 must be an object with input_sentence, got str"),
        ([{"input_sentence": "the"}, {"text": "a"}], "'input_sentence' of sentence 1 is missing"),
        ([{"input_sentence": 5}], "'input_sentence' of sentence 0 must be a string, got int"),
        ([{"input_sentence": "?!"}], "sentence 0 has 0 words; send 1 to 59"),
        ([{"input_sentence": "the " * 60}], "sentence 0 has 60 words; send 1 to 59"),
    ],
)
def test_a_bad_sentence_is_refused_with_its_number(served: Served, value: Any, said: str) -> None:
    status, answer = ask(served, value)
    assert status == 400
    assert said in answer["error"]["message"]

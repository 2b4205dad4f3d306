"""Measure the accuracy of a served model on reviews it has not seen, over HTTP."""

import json
import urllib.request

import click
import corpus

_SEED = 1_000_007
_REVIEWS_PER_REQUEST = 20


@click.command()
@click.option(
    "--url", default="http://127.0.0.1:8080/predictions/crepe", show_default=True, help="Model."
)
@click.option("--reviews", default=1400, show_default=True, help="How many reviews to ask about.")
def main(url: str, reviews: int) -> None:
    """Ask about reviews of the held-out grammar and print the share of right answers."""
    written = corpus.generate(reviews, _SEED, corpus.VALIDATION)
    right = 0
    for start in range(0, len(written), _REVIEWS_PER_REQUEST):
        batch = written[start : start + _REVIEWS_PER_REQUEST]
        body = json.dumps([{"review_title": r.title, "review": r.text} for r in batch]).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            answers = json.load(response)
        right += sum(
            answer["category"] == corpus.CATEGORIES[review.label]
            for answer, review in zip(answers, batch, strict=True)
        )
    click.echo(f"accuracy {right / len(written):.1%} on {len(written)} held-out reviews")


if __name__ == "__main__":
    main()

"""Write reviews of the training grammar as calibration data for ``--quantize int8``."""

from pathlib import Path

import click
import corpus
import orjson

#: None of the seeds that train.py uses.
_SEED = 1_000_003


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--reviews", default=512, show_default=True, help="How many; one request each.")
def main(output: Path, reviews: int) -> None:
    """Write the body of a request per line."""
    output.parent.mkdir(parents=True, exist_ok=True)
    bodies = (
        [{"review_title": review.title, "review": review.text}]
        for review in corpus.generate(reviews, _SEED, corpus.TRAINING)
    )
    output.write_bytes(b"".join(orjson.dumps(body) + b"\n" for body in bodies))


if __name__ == "__main__":
    main()

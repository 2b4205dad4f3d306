"""Ask the server what is in a picture, and draw the boxes it answers. Needs Pillow only."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw

COLOURS = {"circle": "#ff2d55", "square": "#ffffff", "triangle": "#ffe600"}
OTHER_COLOUR = "#00ff9d"
# A picture with noise is several times smaller in a palette. What is drawn gets colours of its own.
PICTURE_COLOURS, ALL_COLOURS = 64, 256
TIMEOUT_S = 30


def ask(url: str, picture: bytes) -> list[dict[str, Any]]:
    """Return what the server finds in an encoded picture.

    Raises:
        urllib.error.URLError: There is no answer, or it is an error.
    """
    request = urllib.request.Request(url, picture, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        found: list[dict[str, Any]] = json.load(response)
    return found


def draw(image: Image.Image, found: list[dict[str, Any]]) -> Image.Image:
    """Return the picture with a box and a label for each thing found."""
    drawn = image.convert("RGB").quantize(PICTURE_COLOURS).convert("RGB")
    pen = ImageDraw.Draw(drawn)
    for thing in found:
        left, top, right, bottom = thing["box"]
        colour = COLOURS.get(thing["class"], OTHER_COLOUR)
        pen.rectangle((left, top, right, bottom), outline=colour, width=2)
        text = f"{thing['class']} {thing['score']:.2f}"
        place = (left + 3, top - 13 if top >= 13 else top + 3)
        pen.rectangle(pen.textbbox(place, text), fill="black")
        pen.text(place, text, fill=colour)
    return drawn.quantize(ALL_COLOURS)


@click.command()
@click.argument("picture", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--url", default="http://127.0.0.1:8080/predictions/ssd", show_default=True)
def main(picture: Path, output: Path, url: str) -> None:
    """Ask URL about PICTURE and write it with its boxes to OUTPUT, a PNG."""
    try:
        found = ask(url, picture.read_bytes())
    except urllib.error.HTTPError as error:
        sys.exit(f"Error: {url} answers {error.code}: {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        sys.exit(f"Error: {url} does not answer ({error.reason}); is the server running?")
    with Image.open(picture) as image:
        draw(image, found).save(output, "PNG", optimize=True)
    print(f"{output}: {len(found)} boxes")


if __name__ == "__main__":
    main()

"""A small CLIP with random weights, to train from scratch where no pretrained one can be downloaded.

    python examples/make_tiny_clip.py my-shop

In: `my-shop/work/clean/cleaned.csv`, for the words of the tokenizer.
Out: `my-shop/tiny-clip/`, a plain Hugging Face folder for `model.name` or `--model`.

Its search results are random until it is trained: `furnclip train --scenario full`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from furnclip.catalogue import read_rows
from furnclip.model import build_tiny_clip
from furnclip.relevance import default_caption


def main() -> None:
    """Read the folder from the command line and write the model into it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of a catalogue that `furnclip clean` has cleaned")
    parser.add_argument("--image-px", type=int, default=64, help="side of the images it sees, in pixels")
    parser.add_argument("--width", type=int, default=96, help="width of its towers, a multiple of 32")
    parser.add_argument("--layers", type=int, default=3, help="layers in each tower")
    parser.add_argument("--patch-px", type=int, default=16, help="side of a patch, in pixels")
    arguments = parser.parse_args()
    _, rows = read_rows(arguments.folder / "work" / "clean" / "cleaned.csv")
    captions = [text for row in rows for text in (default_caption(row), row["title"])]
    folder = build_tiny_clip(
        arguments.folder / "tiny-clip",
        captions,
        image_px=arguments.image_px,
        width=arguments.width,
        layers=arguments.layers,
        patch_px=arguments.patch_px,
    )
    print(f"wrote a random CLIP to {folder}")


if __name__ == "__main__":
    main()

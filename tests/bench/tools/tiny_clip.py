"""The three steps of furnclip-tiny's recipe that are not commands; `tiny_clip.md` has the whole recipe.

    python -m tests.bench.tools.tiny_clip start tiny --sweethome sh3d
    python -m tests.bench.tools.tiny_clip finish tiny/work_training/runs/furnclip-tiny
    python -m tests.bench.tools.tiny_clip judge sh3d

`start` reads a drawn catalogue (`tiny/products.csv`, `truth.csv`, `work/clean/cleaned.csv`) and a
prepared Sweet Home 3D catalogue, of which only the train split is taken. It writes
`tiny/training.csv`, `tiny/start/` (random weights and a tokenizer) and `tiny/furnclip.toml`.
`finish` writes the run's model in half precision into the package; the model card there is kept.
`judge` prints how often the package's model names the type and the room of an image that it has not seen,
among the types and rooms of Sweet Home 3D's test split: some eighty images, so two points are one image.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import CLIPModel

import furnclip
from examples.make_tiny_clip import build_tiny_clip
from furnclip.catalogue import ATTRIBUTES, CLEAN_COLUMNS, read_records
from furnclip.config import load_config
from furnclip.images import load_square
from furnclip.journal import write_text
from furnclip.metrics.retrieval import ranks, recall_at_k
from furnclip.model.loading import load_clip
from furnclip.relevance import default_caption
from furnclip.shards import ShardDataset
from tests.prepare_shop import read_assignments

IMAGE_PX = 96
SETTINGS = """\
# Settings that furnclip-tiny is trained with; every other key has its default.

[paths]
products = "training.csv"
work = "work_training"
group_column = "model"

[model]
name = "start"

[clean]
backend = "local"

[prepare]
image_px = 96
train_fraction = 0.97
validation_fraction = 0.02

[train]
scenario = "full"
effective_batch_size = 64
wise_ft = false
"""
COLUMNS = ("product_id", "title", "image", "model", *CLEAN_COLUMNS)


def main() -> None:
    """Read the step from the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(required=True)
    start = steps.add_parser("start", help="gather the training rows and write the random start")
    start.add_argument("folder", type=Path, help="the drawn catalogue, cleaned")
    start.add_argument("--sweethome", type=Path, required=True, help="Sweet Home 3D, cleaned and prepared")
    start.set_defaults(step=lambda arguments: write_start(arguments.folder, arguments.sweethome))
    finish = steps.add_parser("finish", help="put the trained model into the package")
    finish.add_argument("run", type=Path, help="folder of the finished run")
    finish.set_defaults(step=lambda arguments: write_bundle(arguments.run))
    judge = steps.add_parser("judge", help="name what is on images of Sweet Home 3D's test split")
    judge.add_argument("sweethome", type=Path, help="Sweet Home 3D, cleaned and prepared")
    judge.set_defaults(step=lambda arguments: print_judgment(arguments.sweethome))
    arguments = parser.parse_args()
    arguments.step(arguments)


def write_start(folder: Path, sweethome: Path) -> None:
    """Training rows, settings and the random model."""
    rows = [*_drawn_rows(folder), *_sweethome_rows(folder, sweethome)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "training.csv", text.getvalue())
    write_text(folder / "furnclip.toml", SETTINGS)
    captions = [default_caption(row) for row in rows]
    build_tiny_clip(
        folder / "start", captions, image_px=IMAGE_PX, width=192, layers=4, patch_px=16, text_positions=32
    )
    print(f"{len(rows)} training rows, start model in {folder / 'start'}")


def _rows_of(path: Path) -> Iterator[dict[str, str]]:
    return (record.fields for record in read_records(path)[1])


def _drawn_rows(folder: Path) -> Iterator[dict[str, str]]:
    """The true attributes; every third title as the cleaner left it, so that shop words occur too."""
    truth = {row["product_id"]: row for row in _rows_of(folder / "truth.csv")}
    for number, row in enumerate(_rows_of(folder / "work" / "clean" / "cleaned.csv")):
        known = truth[row["product_id"]]
        true = {name: known[f"true_{name}"] for name in ATTRIBUTES}
        title = row["clean_title"] if number % 3 == 0 else known["true_title"].lower()
        yield {**row, **true, "clean_title": title, "queries": ""}  # the cleaner's follow its guesses


def _sweethome_rows(folder: Path, sweethome: Path) -> Iterator[dict[str, str]]:
    """The train split, its images copied beside the drawn ones."""
    assignments = read_assignments(sweethome / "work" / "shards")
    target = folder / "images" / "sweethome"
    target.mkdir(parents=True, exist_ok=True)
    for row in _rows_of(sweethome / "work" / "clean" / "cleaned.csv"):
        if assignments.get(row["product_id"], ("", ""))[1] == "train":
            shutil.copyfile(sweethome / "images" / row["image"], target / row["image"])
            yield {**row, "image": f"sweethome/{row['image']}", "model": row["product_id"]}


def write_bundle(run: Path) -> None:
    """The merged model in half precision and its tokenizer, where `furnclip-tiny` is looked for."""
    target = Path(furnclip.__file__).parent / "demo" / "furnclip_tiny"
    target.mkdir(exist_ok=True)
    for path in sorted((run / "model").iterdir()):
        if path.is_file() and path.suffix not in (".safetensors", ".md"):
            shutil.copyfile(path, target / path.name)
    CLIPModel.from_pretrained(run / "model").half().save_pretrained(target)
    size_mb = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    print(f"{size_mb:.1f} MB in {target}")


def print_judgment(sweethome: Path) -> None:
    """Zero-shot accuracy at once and among five, beside chance, for object types and room categories."""
    config = load_config(sweethome / "furnclip.toml")
    clip = load_clip("furnclip-tiny", config.model)
    test = ShardDataset(config.paths.shards, "test")
    for column in ("object_type", "category"):
        known = [sample for sample in test if sample.fields[column] not in ("unknown", "other", "")]
        names = sorted({sample.fields[column] for sample in known})
        images = clip.encode_images([load_square(sample.image_bytes, clip.image_px) for sample in known])
        words = clip.encode_texts([f"a photo of a {name.lower()}" for name in names])
        right = [np.array([names.index(sample.fields[column])]) for sample in known]
        found = ranks(images, words, right)
        print(f"{column}: {len(known)} images, {len(names)} names")
        for k in (1, 5):
            print(f"  among {k}: {recall_at_k(found, k):.3f}, by chance {k / len(names):.3f}")


if __name__ == "__main__":
    main()

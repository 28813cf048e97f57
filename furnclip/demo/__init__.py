"""The first five minutes: a bundled catalogue, a tiny CLIP, and the tour that runs every command on them.

In: an empty folder. Out: everything the commands write there, and `work/tour.json` with the seconds of each
stage. The commands run as they would be typed, each in a process of its own, offline; an interrupted tour
continues with the first stage that is not finished.

`catalogue.zip` has 1,400 products with messy titles and images of 96 px, drawn by `examples/drawn_shop` in a
style and with color names that furnclip-tiny has not seen. The numbers show that the commands work together,
not how well furnclip does on photographs.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tomli

from furnclip import console
from furnclip.config import config_template, environment_variables
from furnclip.errors import FurnclipError, InputError, Interrupted
from furnclip.journal import read_json, write_json, write_text
from furnclip.parallel import run_furnclip

QUERIES = ("red leather armchair", "round glass coffee table", "tall bookcase full of books")
SETTINGS = {
    "paths.group_column": "model",
    "model.name": "furnclip-tiny",
    "clean.backend": "local",
    "prepare.image_px": 96,
    "prepare.train_fraction": 0.2,  # many to test on, so that each step of the tour is clear
    "prepare.validation_fraction": 0.1,
}
_BUNDLE = Path(__file__).parent / "catalogue.zip"
_RECORD = Path("work") / "tour.json"
_VIEWER = ("FURNCLIP_VIEWER", "FURNCLIP_ARENA__VIEWER")
_NEW_FOLDER = "name a new folder: `furnclip demo my-tour`"


class Stage(NamedTuple):
    """One command of the tour, and why it is run."""

    name: str
    why: str
    words: tuple[str, ...]


# Without augmentation both towers run once, and the projections train on their cached features.
_PROBE = ("--epochs", "40", "--lr", "1e-3", "--augment", "none")
# By defaults, but for the epochs: 30 would take the tour far past two minutes.
_ADAPTERS = ("--epochs", "15")
STAGES = (
    Stage("init", "a settings file", ("init", "--force")),
    Stage("clean", "titles, style, material, color and type, by offline rules", ("clean", "run")),
    Stage("prepare", "shards, with no product in two splits", ("prepare",)),
    Stage("zero_shot", "the base as it is, for comparison", ("train", "--scenario", "zero_shot")),
    Stage("linear_probe", "train the two projections", ("train", "--scenario", "linear_probe", *_PROBE)),
    Stage("dual_lora", "train adapters in both encoders", ("train", "--scenario", "dual_lora", *_ADAPTERS)),
    Stage("eval", "did it get better?", ("eval", "--run", "linear_probe", "--run", "dual_lora")),
    Stage("embed", "vectors and a search table", ("embed", "--run", "dual_lora")),
    *(
        Stage(f"search_{number}", "a shopper's query", ("search", query, "-k", "3", "--preview"))
        for number, query in enumerate(QUERIES, start=1)
    ),
)


class Tour(NamedTuple):
    """What the tour did: seconds of each stage, those that were finished before, and `eval`'s page."""

    folder: Path
    seconds: Mapping[str, float]
    skipped: tuple[str, ...]
    report: Path

    def scores(self) -> list[dict[str, Any]]:
        """Text to image on the test split, from `eval`'s own report; the base first."""
        report = json.loads(self.report.with_suffix(".json").read_text("utf-8"))
        found = []
        for label in report["labels"]:
            figures = report["models"][label]["text_to_image"]
            name = "zero_shot (base)" if label == "base" else label
            recall = {"recall_at_1": figures["recall@1"], "recall_at_5": figures["recall@5"]}
            found.append({"model": name, **recall, "mrr": figures["mrr"]})
            if label != "base":
                test = report["paired"][label]["text_to_image"]["mrr"]
                found[-1]["mrr_gain"] = [test["difference"], test["low"], test["high"]]
        return found


@dataclass(frozen=True)
class _TourRecord:
    """`work/tour.json`: what was asked for, and the seconds and JSON result of each finished stage."""

    order: dict[str, int]
    seconds: dict[str, float]
    results: dict[str, Any]


def take_tour(folder: Path, *, products: int, seed: int, quietly: bool = False) -> Tour:
    """Run every stage in `folder`; with `quietly`, commands report to us instead of to the terminal.

    `products`: how many of the catalogue; `seed`: of the splits and of training. Raises `InputError` when
    the folder holds something else, `FurnclipError` when a command fails.
    """
    record = _begin(folder, {"products": products, "seed": seed})
    skipped = tuple(record.seconds)
    for stage in STAGES:
        if stage.name in skipped:
            continue
        start = time.perf_counter()
        record.results[stage.name] = _run(folder, stage, quietly=quietly)
        if stage.name == "init":
            apply_settings(folder, {**SETTINGS, "train.seed": seed})
        record.seconds[stage.name] = round(time.perf_counter() - start, 2)
        write_json(folder / _RECORD, asdict(record))
    return Tour(folder, record.seconds, skipped, folder / "work" / "eval" / "report.html")


def _begin(folder: Path, order: dict[str, int]) -> _TourRecord:
    """The record of the tour in `folder`; where there is none, the catalogue and a new one."""
    path = folder / _RECORD
    if path.exists():
        record = read_json(path, _TourRecord, what="the tour's record", hint=_NEW_FOLDER)
        if record.order != order:
            raise InputError(f"`{folder}` holds a tour with other settings", hint=_NEW_FOLDER)
    else:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"`{folder}` is not empty", hint=_NEW_FOLDER)
        record = _TourRecord(order=order, seconds={}, results={})
        write_json(path, asdict(record))
    if not record.seconds:
        unpack(folder, products=order["products"], seed=order["seed"])
        console.note(f"wrote the bundled catalogue, {order['products']} drawn products, to {folder}")
    return record


def unpack(folder: Path, *, products: int, seed: int) -> None:
    """Write `products.csv` and the images of the first `products` rows of the catalogue into `folder`.

    A `seed` other than 0 is appended to every product id: a product's split follows from a hash of its
    id, so each seed has splits of its own.
    """
    with zipfile.ZipFile(_BUNDLE) as bundle:
        catalogue = csv.DictReader(io.StringIO(bundle.read("products.csv").decode("utf-8"), newline=""))
        rows = [row for row, _ in zip(catalogue, range(products), strict=False)]
        for row in rows:
            bundle.extract(f"images/{row['image']}", folder)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    suffix = f"-{seed}" if seed else ""
    writer.writerows({**row, "product_id": row["product_id"] + suffix} for row in rows)
    write_text(folder / "products.csv", text.getvalue())


def _run(folder: Path, stage: Stage, *, quietly: bool) -> Any:
    """Run the command; its JSON result with `quietly`, else None.

    It has no network, caches of libraries inside the folder, and no setting but those of its `furnclip.toml`:
    a user's `FURNCLIP_CLEAN__BACKEND=openai` would make the tour buy answers.
    """
    env = {
        name: value
        for name, value in environment_variables().items()
        if name in _VIEWER or not name.startswith(("FURNCLIP_", "MODEL_NAME", "OPENAI_"))
    }
    cache = str(folder / "work" / "cache" / "huggingface")
    env.update({"HF_HUB_OFFLINE": "1", "HF_HOME": cache, "WANDB_MODE": "disabled"})
    console.note(f"\n# {stage.why}\n$ {shlex.join(('furnclip', *stage.words))}")
    words = [*stage.words, "--json"] if quietly else stage.words
    captured = subprocess.PIPE if quietly else None
    code, output = run_furnclip(words, cwd=folder, env=env, stdout=captured)
    if code == Interrupted.exit_code:
        raise Interrupted
    if code:
        hint = "its own message is above; fix the cause and run the same `furnclip demo` again"
        raise FurnclipError(f"`furnclip {stage.words[0]}` ended with exit code {code}", hint=hint)
    return json.loads(output) if quietly else None


def apply_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Change the few settings that the tour needs, and show them."""
    path = folder / "furnclip.toml"
    values = tomli.loads(path.read_text("utf-8"))
    for name, value in settings.items():
        section, _, key = name.partition(".")
        values[section][key] = value
    write_text(path, config_template(values))
    changed = ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    console.note(f"edited furnclip.toml: {changed}")

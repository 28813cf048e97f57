"""The tour: a shop drawn on the spot, and every command of furnclip run on it, offline.

In: an empty folder. Out: everything the commands write there, and `work/tour.json` with the seconds
of each stage. The commands run as they would be typed, each in a process of its own; a tour that was
stopped goes on with the first stage that is not finished. The shop is in a drawing style and the
model is a few million parameters: the numbers show that the machinery works, not how well furnclip
does on photographs.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furnclip import console
from furnclip.config import environment_variables
from furnclip.demo.shop import MANIFEST_NAME
from furnclip.errors import FurnclipError, InputError, Interrupted
from furnclip.journal import write_json, write_text

SCENARIOS = ("zero_shot", "linear_probe", "dual_lora")
QUERIES = ("red leather armchair", "round glass coffee table", "tall bookcase full of books")
SETTINGS = {
    "paths.group_column": "model",
    "model.name": "furnclip-tiny",
    "clean.backend": "local",
    "prepare.image_px": 96,
    "prepare.train_fraction": 0.45,
    "prepare.validation_fraction": 0.1,
    "train.patience": 0,
    "train.caption_sampling": True,
}
_UNSEEN_STYLE = "ink"
_RECORD = Path("work") / "tour.json"


@dataclass(frozen=True)
class Stage:
    """One command of the tour, and why it is run."""

    name: str
    why: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """How well a model finds the picture that belongs to a text."""

    model: str
    recall_at_1: float
    recall_at_5: float
    mrr: float


@dataclass(frozen=True)
class Tour:
    """What the tour did: seconds of each stage, and what its commands reported."""

    folder: Path
    seconds: Mapping[str, float]
    results: Mapping[str, Any]
    skipped: tuple[str, ...]

    @property
    def report(self) -> Path:
        """The page that `eval` wrote."""
        return self.folder / "work" / "eval" / "report.html"

    def scores(self) -> list[Score]:
        """Text to image on the test split, from `eval`'s own report; the base first."""
        report = json.loads(self.report.with_suffix(".json").read_text("utf-8"))
        found = []
        for label in report["labels"]:
            figures = report["models"][label]["text_to_image"]
            name = "zero_shot (base)" if label == "base" else label
            found.append(Score(name, figures["recall@1"], figures["recall@5"], figures["mrr"]))
        return found


def stages(products: int, seed: int) -> Iterator[Stage]:
    """The commands in order."""
    size = ("--products", str(products), "--seed", str(seed))
    shop = ("demo", "--catalogue", ".", *size, "--drawing-style", _UNSEEN_STYLE, "--own-words")
    yield Stage(
        "draw",
        f"a shop of {products} products, in a style and with words that furnclip-tiny has not seen",
        shop,
    )
    yield Stage("init", "a settings file", ("init",))
    yield Stage("clean", "titles, style, material, colour and type, by offline rules", ("clean", "run"))
    yield Stage("prepare", "shards, with no product in two splits", ("prepare",))
    for scenario in SCENARIOS:
        yield Stage(scenario, _WHY[scenario], ("train", "--scenario", scenario, *_TRAINING[scenario]))
    runs = tuple(word for scenario in SCENARIOS[1:] for word in ("--run", scenario))
    yield Stage("eval", "did it get better?", ("eval", *runs))
    yield Stage("embed", "vectors and a search table", ("embed", "--run", SCENARIOS[-1]))
    for number, query in enumerate(QUERIES, start=1):
        yield Stage(
            f"search_{number}", "what a shopper would type", ("search", query, "-k", "5", "--preview")
        )


_WHY = {
    "zero_shot": "the base as it is, for comparison",
    "linear_probe": "train the two projections",
    "dual_lora": "train adapters in both encoders",
}
_TRAINING: dict[str, tuple[str, ...]] = {
    "zero_shot": (),
    # Without augmentation both towers run once, and the projections train on what they said.
    "linear_probe": ("--epochs", "40", "--lr", "1e-3", "--augment", "none"),
    "dual_lora": ("--epochs", "20", "--lr", "4e-3", "--effective-batch-size", "80"),
}


def take_tour(folder: Path, *, products: int, seed: int, quietly: bool = False) -> Tour:
    """Run every stage in `folder`; with `quietly`, commands report to us instead of to the terminal.

    Raises `InputError` when the folder holds something else, `FurnclipError` when a command fails.
    """
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(folder, {"products": products, "seed": seed})
    skipped = []
    for stage in stages(products, seed):
        if stage.name in record["seconds"]:
            skipped.append(stage.name)
            continue
        start = time.perf_counter()
        result = _run(folder, stage, quietly=quietly)
        if stage.name == "init":
            _apply_settings(folder)
        record["seconds"][stage.name] = round(time.perf_counter() - start, 2)
        record["results"][stage.name] = result
        write_json(folder / _RECORD, record)
    return Tour(folder, record["seconds"], record["results"], tuple(skipped))


def _check_folder(folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists() or not folder.is_dir() or not any(folder.iterdir()):
        return
    raise InputError(f"`{folder}` is not empty", hint="name a new folder: `furnclip demo my-tour`")


def _read_record(folder: Path, order: Mapping[str, int]) -> dict[str, Any]:
    path = folder / _RECORD
    if not path.exists():
        return {"order": dict(order), "seconds": {}, "results": {}}
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if record["order"] != dict(order):
        raise InputError(
            f"`{folder}` holds a tour with other settings", hint="name a new folder, or remove this one"
        )
    return record


def _run(folder: Path, stage: Stage, *, quietly: bool) -> Any:
    """Run the command; its JSON result with `quietly`, else None."""
    console.note(f"\n# {stage.why}\n$ {shlex.join(('furnclip', *stage.words))}")
    command = [sys.executable, "-m", "furnclip", *stage.words, *(["--json"] if quietly else [])]
    with subprocess.Popen(
        command, cwd=folder, env=_offline_environment(folder), stdout=subprocess.PIPE if quietly else None
    ) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()  # the terminal has told it too; it saves what it has
            raise Interrupted from None
    if process.returncode:
        raise _failure(stage.words, process.returncode)
    return json.loads(output) if quietly else None


def _failure(words: Sequence[str], code: int) -> FurnclipError:
    if code == Interrupted.exit_code:
        return Interrupted()
    return FurnclipError(
        f"`furnclip {words[0]}` ended with exit code {code}",
        hint="its own message is above; the same `furnclip demo` goes on from there",
    )


def _offline_environment(folder: Path) -> dict[str, str]:
    """No network, and the libraries' own caches inside the folder."""
    cache = folder / "work" / "cache"
    return {
        **environment_variables(),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "huggingface"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "WANDB_MODE": "disabled",
    }


def _apply_settings(folder: Path) -> None:
    """Change the few settings that the tour needs, and show them."""
    path = folder / "furnclip.toml"
    lines = path.read_text("utf-8").splitlines()
    section = ""
    for index, line in enumerate(lines):
        if line.startswith("["):
            section = line.strip("[]")
        key, _, rest = line.partition(" = ")
        value = SETTINGS.get(f"{section}.{key}")
        if value is not None:
            comment = rest.partition("  # ")[2]
            lines[index] = f"{key} = {json.dumps(value)}  # {comment}"
    write_text(path, "\n".join(lines) + "\n")
    changed = ", ".join(f"{name} = {json.dumps(value)}" for name, value in SETTINGS.items())
    console.note(f"edited furnclip.toml: {changed}")

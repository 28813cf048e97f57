"""The tour: the bundled catalogue, and every command of furnclip run on it, offline.

In: an empty folder. Out: everything the commands write there, and `work/tour.json` with the seconds
of each stage. The commands run as they would be typed, each in a process of its own; an interrupted
tour continues with the first stage that is not finished. The images are drawings in one style and the
model has a few million parameters: the numbers show that the commands work together, not how well
furnclip does on photographs.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from furnclip import console
from furnclip.config import environment_variables
from furnclip.demo.catalogue import unpack
from furnclip.errors import FurnclipError, InputError, Interrupted
from furnclip.journal import read_json, write_json, write_text

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
_RECORD = Path("work") / "tour.json"
_VIEWER = ("FURNCLIP_VIEWER", "FURNCLIP_ARENA__VIEWER")
_NEW_FOLDER = "name a new folder: `furnclip demo my-tour`"


@dataclass(frozen=True)
class Stage:
    """One command of the tour, and why it is run."""

    name: str
    why: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """How well a model finds the image that belongs to a text."""

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


@dataclass(frozen=True)
class _Record:
    """`work/tour.json`: what was asked for, and the seconds and JSON result of each finished stage."""

    order: dict[str, int]
    seconds: dict[str, float]
    results: dict[str, Any]


def stages() -> Iterator[Stage]:
    """The commands in order."""
    yield Stage("init", "a settings file", ("init", "--force"))
    yield Stage("clean", "titles, style, material, color and type, by offline rules", ("clean", "run"))
    yield Stage("prepare", "shards, with no product in two splits", ("prepare",))
    for scenario in SCENARIOS:
        yield Stage(scenario, _WHY[scenario], ("train", "--scenario", scenario, *_TRAINING[scenario]))
    runs = tuple(word for scenario in SCENARIOS[1:] for word in ("--run", scenario))
    yield Stage("eval", "did it get better?", ("eval", *runs))
    yield Stage("embed", "vectors and a search table", ("embed", "--run", SCENARIOS[-1]))
    for number, query in enumerate(QUERIES, start=1):
        yield Stage(f"search_{number}", "a shopper's query", ("search", query, "-k", "5", "--preview"))


_WHY = {
    "zero_shot": "the base as it is, for comparison",
    "linear_probe": "train the two projections",
    "dual_lora": "train adapters in both encoders",
}
_TRAINING: dict[str, tuple[str, ...]] = {
    "zero_shot": (),
    # Without augmentation both towers run once, and the projections train on their cached features.
    "linear_probe": ("--epochs", "40", "--lr", "1e-3", "--augment", "none"),
    "dual_lora": ("--epochs", "20", "--lr", "4e-3", "--effective-batch-size", "80"),
}


def take_tour(folder: Path, *, products: int, seed: int, quietly: bool = False) -> Tour:
    """Run every stage in `folder`; with `quietly`, commands report to us instead of to the terminal.

    `products`: how many of the catalogue; `seed`: of the splits and of training. Raises `InputError` when
    the folder holds something else, `FurnclipError` when a command fails.
    """
    record = _begin(folder, {"products": products, "seed": seed})
    seconds, results = record.seconds, record.results
    skipped = tuple(seconds)
    for stage in stages():
        if stage.name in seconds:
            continue
        start = time.perf_counter()
        results[stage.name] = _run(folder, stage, quietly=quietly)
        if stage.name == "init":
            apply_settings(folder, {**SETTINGS, "train.seed": seed})
        seconds[stage.name] = round(time.perf_counter() - start, 2)
        write_json(folder / _RECORD, asdict(record))
    return Tour(folder, seconds, results, skipped)


def _begin(folder: Path, order: dict[str, int]) -> _Record:
    """The record of the tour in `folder`; where there is none, the catalogue and a new one."""
    path = folder / _RECORD
    if path.exists():
        record = read_json(path, _Record, what="the tour's record", hint=_NEW_FOLDER)
        if record.order != order:
            raise InputError(f"`{folder}` holds a tour with other settings", hint=_NEW_FOLDER)
    else:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"`{folder}` is not empty", hint=_NEW_FOLDER)
        record = _Record(order=order, seconds={}, results={})
        write_json(path, asdict(record))
    if not record.seconds:
        unpack(folder, products=order["products"], seed=order["seed"])
        console.note(f"wrote the bundled catalogue, {order['products']} drawn products, to {folder}")
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
            process.wait()  # the terminal has sent it SIGINT too; it saves its state
            raise Interrupted from None
        except BaseException:  # SIGTERM or SIGHUP
            process.terminate()
            raise
    if process.returncode:
        raise _failure(stage.words, process.returncode)
    return json.loads(output) if quietly else None


def _failure(words: Sequence[str], code: int) -> FurnclipError:
    if code == Interrupted.exit_code:
        return Interrupted()
    return FurnclipError(
        f"`furnclip {words[0]}` ended with exit code {code}",
        hint="its own message is above; fix the cause and run the same `furnclip demo` again",
    )


def _offline_environment(folder: Path) -> dict[str, str]:
    """No network, caches of libraries inside the folder, and no setting but those of its `furnclip.toml`.

    A user's `FURNCLIP_CLEAN__BACKEND=openai` would make the tour buy answers.
    """
    cache = folder / "work" / "cache"
    kept = {
        name: value
        for name, value in environment_variables().items()
        if name in _VIEWER or not name.startswith(("FURNCLIP_", "MODEL_NAME", "OPENAI_"))
    }
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "huggingface"),
        "WANDB_MODE": "disabled",
    }


def apply_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Change the few settings that the tour needs, and show them."""
    path = folder / "furnclip.toml"
    lines = path.read_text("utf-8").splitlines()
    section = ""
    for index, line in enumerate(lines):
        if line.startswith("["):
            section = line.strip("[]")
        key, _, rest = line.partition(" = ")
        value = settings.get(f"{section}.{key}")
        if value is not None:
            comment = rest.partition("  # ")[2]
            lines[index] = f"{key} = {json.dumps(value)}  # {comment}"
    write_text(path, "\n".join(lines) + "\n")
    changed = ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    console.note(f"edited furnclip.toml: {changed}")

"""Where figures of a run go: `metrics.jsonl` always, the terminal if there is one, W&B if asked for.

Out: `work/runs/NAME/metrics.jsonl`, one JSON object a line with `event` `step` or `validation`. Lines behind
the checkpoint that a run is resumed from are removed, so no step is there twice.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ParserError
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from furnclip import console
from furnclip.config import Config, environment_variables
from furnclip.errors import ConfigError, InputError
from furnclip.journal import encode_event, read_journal, read_text, write_bytes
from furnclip.runs import METRICS_NAME

_WANDB = "https://api.wandb.ai"
_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 40


class WandbTracker:
    """Weights & Biases. The id is the run's own, so a resumed run keeps its page and no other run gets it."""

    def __init__(self, config: Config, run: Path, tracker_id: str) -> None:
        import wandb  # an extra, and slow to load

        _check_settings_of_folder(Path.cwd() / "wandb" / "settings")
        self._run = wandb.init(
            project=config.train.wandb_project,
            name=run.name,
            id=tracker_id,
            dir=str(run),
            mode="online" if config.train.wandb == "online" else "offline",
            resume="allow",
            config=json.loads(config.train.model_dump_json()),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, event: Mapping[str, Any]) -> None:
        """The numbers of an event under `EVENT/NAME`, nested ones under `EVENT/GROUP/NAME`."""
        figures: dict[str, Any] = {}
        for name, value in event.items():
            nested = isinstance(value, Mapping)
            figures |= {f"{name}/{inner}": each for inner, each in value.items()} if nested else {name: value}
        step, kind = figures.pop("step"), figures.pop("event")
        numbers = {f"{kind}/{name}": value for name, value in figures.items() if value is not None}
        self._run.log(numbers, step=step)

    def log_model(self, folder: Path) -> None:
        """Keep the merged model as an artifact."""
        self._run.log_artifact(str(folder), name=f"{self._run.name}-model", type="model")

    def close(self) -> None:
        self._run.finish()


def _check_settings_of_folder(path: Path) -> None:
    """W&B takes settings from this file of the current folder, whoever wrote it, and sends its key to the
    address there. What `wandb init` writes for W&B's own service is harmless.

    Raises `ConfigError` for anything else in it.
    """
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(read_text(path, what="W&B's settings", hint="move it away"))
        found = {name: value for section in parser.sections() for name, value in parser[section].items()}
    except FileNotFoundError:
        return
    except ParserError as error:
        raise ConfigError(f"`{path}` cannot be read: {error.message}", hint="move it away") from None
    harmless = {"entity": found.get("entity"), "project": found.get("project"), "base_url": _WANDB}
    if "WANDB_BASE_URL" in environment_variables():  # it overrules the file
        harmless["base_url"] = found.get("base_url")
    for name, value in found.items():
        if harmless.get(name) != value:
            raise ConfigError(
                f"`{path}` sets `{name}`, which could send your W&B key to another server",
                hint="move the file away; for a server of your own set WANDB_BASE_URL in your shell",
            )


def forget_after(run: Path, step: int) -> None:
    """Drop events of steps that the checkpoint does not know of; they will happen again."""
    path, kept = run / METRICS_NAME, []
    for event in read_journal(path):
        if not isinstance(event.get("step"), int):
            raise InputError(
                f"`{path}` has an event without its `step`",
                hint="restore the file from a backup, or start the run over with `--no-resume`",
            )
        if event["step"] <= step:
            kept.append(encode_event(event))
    if path.exists():
        write_bytes(path, b"".join(kept))


class LiveView:
    """A tracker that redraws three lines on stderr; nothing where stderr is not a terminal."""

    def __init__(self, name: str, *, epochs: int, total_steps: int) -> None:
        self._name, self._epochs, self._total_steps = name, epochs, total_steps
        self._losses: deque[float] = deque(maxlen=_POINTS)
        self._step, self._validation = "", "validating the base"
        self.live = Live(console=console.stderr(), refresh_per_second=4, transient=True)
        if console.stderr().is_terminal:
            self.live.start()

    def log(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            self._losses.append(event["loss"])
            chance = f" (chance {event['chance']:.2f})" if event["chance"] else ""
            self._step = (
                f"epoch {min(event['epoch'] + 1, self._epochs)}/{self._epochs}  "
                f"step {event['step']}/{self._total_steps}  loss {event['loss']:.3f}{chance}  "
                f"lr {event['lr']:.1e}  gradient {event['gradient_norm']['all']:.2f}  "
                f"{event['samples_per_s']:.0f} samples/s, {event['data_wait']:.0%} waiting"
            )
        else:
            self._validation = (
                f"validation after epoch {event['epoch']}: text to image recall@1 "
                f"{event['text_to_image_recall@1']:.3f}, recall@5 {event['text_to_image_recall@5']:.3f}"
            )
        lines = [self._step, f"loss {sparkline(list(self._losses))}", self._validation]
        self.live.update(Text("\n").join([Text(self._name, "bold"), *map(Text, lines)]))


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of bars, the lowest and the highest at the ends of the scale."""
    if not values:
        return ""
    low, high = min(values), max(values)
    steps = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * steps)] for value in values)

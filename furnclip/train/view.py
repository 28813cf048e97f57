"""The live view of a run in the terminal: where it is, how the loss goes, how fast it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.text import Text

from furnclip import console

_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 40


class LiveView:
    """A tracker that redraws three lines on stderr; nothing where stderr is not a terminal."""

    def __init__(self, name: str, *, epochs: int, total_steps: int) -> None:
        self._name = name
        self._epochs = epochs
        self._total_steps = total_steps
        self._losses: deque[float] = deque(maxlen=_POINTS)
        self._step = Text()
        self._validation = Text("validating the base")
        self._live = Live(console=console.stderr(), refresh_per_second=4, transient=True)
        if console.stderr().is_terminal:
            self._live.start()

    def log(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            self._losses.append(event["loss"])
            self._step = step_line(event, epochs=self._epochs, total_steps=self._total_steps)
        else:
            self._validation = validation_line(event)
        curve = Text(f"loss {sparkline(list(self._losses))}")
        self._live.update(Text("\n").join([Text(self._name, "bold"), self._step, curve, self._validation]))

    def close(self) -> None:
        self._live.stop()


def step_line(event: Mapping[str, Any], *, epochs: int, total_steps: int) -> Text:
    """Position, loss beside chance, rate of learning and of samples, share of time spent waiting."""
    chance = f" (chance {event['chance']:.2f})" if event["chance"] else ""
    return Text(
        f"epoch {min(event['epoch'] + 1, epochs)}/{epochs}  step {event['step']}/{total_steps}  "
        f"loss {event['loss']:.3f}{chance}  lr {event['lr']:.1e}  "
        f"gradient {event['gradient_norm']['all']:.2f}  "
        f"{event['samples_per_s']:.0f} samples/s, {event['data_wait']:.0%} waiting"
    )


def validation_line(event: Mapping[str, Any]) -> Text:
    """The two figures that people ask for, after which epoch."""
    return Text(
        f"validation after epoch {event['epoch']}: text to image recall@1 "
        f"{event['text_to_image_recall@1']:.3f}, recall@5 {event['text_to_image_recall@5']:.3f}"
    )


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of bars, the lowest and the highest at the ends of the scale."""
    if not values:
        return ""
    low, high = min(values), max(values)
    steps = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * steps)] for value in values)

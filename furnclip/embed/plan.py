"""What is decided once for one key: the models and their precision; and who does which row group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from furnclip import __version__, console
from furnclip.config import Config, torchrun_launch
from furnclip.embed.parts import PartFolder, reusable_files
from furnclip.embed.rows import CatalogueReader, decode, read_content
from furnclip.embed.sources import SAMPLE_ROWS, Sample, settle_precision
from furnclip.errors import InputError
from furnclip.journal import read_json, write_text
from furnclip.model import Clip
from furnclip.vectors import ModelProvenance, Provenance

PREPROCESSING = "longest side fitted, letterboxed on white, bicubic, first readable image"
_POLL_S = 0.2
_SAMPLE_SEARCHED = 64


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; one of one without a launcher."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """As `torchrun` started it."""
        launch = torchrun_launch()
        if launch.ignored:
            console.warn(launch.ignored)
        return cls(launch.rank, launch.count)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, numbers: Iterable[int]) -> list[int]:
        """The row groups of this process."""
        return [number for number in numbers if number % self.world == self.rank]


def wait_until(is_done: Callable[[], bool]) -> None:
    """Wait for another process; the launcher ends all of them when one fails."""
    while not is_done():
        time.sleep(_POLL_S)


def read_or_make_plan(
    folder: PartFolder, ranks: Ranks, reader: CatalogueReader, clips: Mapping[str, Clip], *, config: Config
) -> Provenance:
    """The plan that lies in `folder`; process 0 makes it where there is none, the others wait."""
    if ranks.leads and read_plan(folder, clips) is None:
        folder.path.mkdir(parents=True, exist_ok=True)
        plan = _make_plan(folder.path.name, reader, clips, config)
        write_text(folder.plan, plan.model_dump_json(indent=2) + "\n")
    wait_until(lambda: read_plan(folder, clips) is not None)
    plan_read = read_plan(folder, clips)
    assert plan_read is not None
    return plan_read


def read_plan(folder: PartFolder, clips: Mapping[str, Clip]) -> Provenance | None:
    """The plan for these models, or None where there is none that can be used."""
    try:
        plan = read_json(folder.plan, Provenance, what="the plan", hint="it is made again")
    except (OSError, InputError):
        return None
    planned = {label: (model.fingerprint, model.dimension) for label, model in plan.models.items()}
    wanted = {label: (clip.fingerprint, clip.dimension) for label, clip in clips.items()}
    return plan if plan.key == folder.path.name and planned == wanted else None


def _make_plan(key: str, reader: CatalogueReader, clips: Mapping[str, Clip], config: Config) -> Provenance:
    sample = _sample(reader, max(clip.image_px for clip in clips.values()))
    models = {label: _settled(label, clip, config, sample) for label, clip in clips.items()}
    return Provenance(
        furnclip_version=__version__,
        key=key,
        dtype=config.embed.dtype,
        preprocessing=PREPROCESSING,
        source=reader.path.name,
        models=models,
    )


def _settled(label: str, clip: Clip, config: Config, sample: Sample) -> ModelProvenance:
    wanted = None if config.model.precision == "auto" else config.model.precision
    earlier = reusable_files(config.paths.embeddings, label, clip.fingerprint, wanted)
    settled = settle_precision(clip, config, sample, earlier=earlier.precision)
    return ModelProvenance(
        name=clip.name,
        fingerprint=clip.fingerprint,
        dimension=clip.dimension,
        image_px=clip.image_px,
        precision=settled.precision,
        precision_reason=settled.reason,
        precision_cosine=settled.cosine,
    )


def _sample(reader: CatalogueReader, side_px: int) -> Sample:
    """The first products of the catalogue whose image can be read."""
    images: list[Image.Image] = []
    captions: list[str] = []
    for row in islice(reader.rows(), _SAMPLE_SEARCHED):
        decoded = decode(row, read_content(row), frozenset({side_px}))
        if decoded.squares and row.caption and len(images) < SAMPLE_ROWS:
            images.append(decoded.squares[side_px])
            captions.append(row.caption)
    return Sample(images, captions)

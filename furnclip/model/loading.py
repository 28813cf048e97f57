"""Finding a model by name: a run, a folder, the bundled tiny one, or the hub; and the latest run.

Raises `ModelError` with what to do for everything that can be wrong with a name or a folder. Weights
come from safetensors or from `torch.load(weights_only=True)` inside transformers; code that a
repository brings along is never run.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin

import furnclip
from furnclip.errors import ModelError
from furnclip.model.clip import Clip
from furnclip.model.families import family_of
from furnclip.model.pixels import Preprocessing
from furnclip.model.precision import choose_device, choose_precision
from furnclip.model.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from furnclip.config import ModelConfig

BUNDLED = "furnclip-tiny"
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def load_clip(name: str, config: ModelConfig, *, runs: Path | None = None) -> Clip:
    """The model called `name`, on the device and in the arithmetic of `config`.

    `name`: a run under `runs`, a folder, `furnclip-tiny`, or a hub id (at `config.revision`).
    """
    clip = load_float32(name, config, runs=runs)
    device = choose_device(config.device)
    return clip.place(device, choose_precision(config.precision, clip.module, device))


def load_float32(name: str, config: ModelConfig, *, runs: Path | None = None) -> Clip:
    """The model as its weights are, on the CPU."""
    source = _source(name, runs)
    with quiet(), _explained(name):
        settings = AutoConfig.from_pretrained(source, **_hub(source, config))
        family = family_of(settings.model_type, name=name)
        module = AutoModel.from_pretrained(
            source, dtype="float32", attn_implementation="sdpa", **_hub(source, config)
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **_hub(source, config))
        pixel_config, _ = ImageProcessingMixin.get_image_processor_dict(source, **_hub(source, config))
    side_px = int(settings.vision_config.image_size)
    preprocessing = Preprocessing.from_config(pixel_config, image_px=side_px)
    return Clip(module, tokenizer, name=name, family=family, preprocessing=preprocessing)


def latest_run(runs: Path) -> str | None:
    """The most recently finished run under `runs`, or None."""
    finished = [
        (str(card.get("finished_at", "")), folder.name)
        for folder in (sorted(runs.iterdir()) if runs.is_dir() else [])
        if (card := read_card(folder)) and card.get("status") == "finished"
    ]
    return max(finished)[1] if finished else None


def read_card(run: Path) -> dict[str, Any]:
    """`run.json` of a run, or an empty dict where there is none yet."""
    path = run / "run.json"
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        card = None
    if not isinstance(card, dict):
        raise ModelError(f"`{path}` is damaged", hint=f"remove the folder `{run}` and train again")
    return card


def _source(name: str, runs: Path | None) -> str:
    """A folder, or a hub id, as the string that transformers wants."""
    if name == BUNDLED:
        return _bundled()
    if runs is not None and Path(name).name == name and (runs / name).is_dir():
        return _run_model(runs / name)
    if name and Path(name).expanduser().is_dir():
        return _checked_folder(Path(name).expanduser())
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"there is no model folder `{name}`", hint="give a folder, a run's name or a hub id to `--model`"
        )
    return name


def _bundled() -> str:
    folder = Path(furnclip.__file__).parent / "demo" / "furnclip_tiny"
    if not (folder / "config.json").is_file():
        raise ModelError(f"the bundled model `{BUNDLED}` is missing", hint="install furnclip again")
    return str(folder)


def _run_model(run: Path) -> str:
    if read_card(run).get("status") != "finished":
        raise ModelError(
            f"the run `{run.name}` is not finished",
            hint=f"run `furnclip train --run {run.name}` again; it goes on where it stopped",
        )
    return _checked_folder(run / "model")


def _checked_folder(folder: Path) -> str:
    """The folder, once it holds a configuration and weights; a clear error saves a long traceback."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"`{folder}` has no `config.json`, so it is not a model folder",
            hint="give the folder that `save_pretrained` wrote, or a hub id",
        )
    if not any(file for pattern in _WEIGHT_PATTERNS for file in folder.glob(pattern)):
        raise ModelError(
            f"`{folder}` has no weights (no `model.safetensors`)",
            hint="copy the weights there, or train again",
        )
    return str(folder)


def _hub(source: str, config: ModelConfig) -> dict[str, Any]:
    return {} if Path(source).is_dir() else {"revision": config.revision}


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"the model `{name}` cannot be loaded: {first_line.strip().rstrip('.')}",
            hint="check the name and the network, or download it once and give its folder to `--model`",
        ) from None

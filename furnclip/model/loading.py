"""Finding a model by name: a run, a folder, the bundled tiny one, or the hub.

Raises `ModelError` with what to do for everything that can be wrong with a name or a folder. Weights
come from safetensors or from `torch.load(weights_only=True)` inside transformers; code that a
repository brings along is never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin

import furnclip
from furnclip.config import ModelConfig
from furnclip.errors import FurnclipError, ModelError, first_line, is_out_of_memory
from furnclip.journal import read_json
from furnclip.model.clip import Clip, quiet
from furnclip.model.inputs import Preprocessing, tokenizer_problem
from furnclip.model.light import BUNDLED
from furnclip.model.open_clip import CONFIG_NAME, converted, from_hub
from furnclip.model.precision import choose_device, choose_precision
from furnclip.model.towers import CLIP, SIGLIP
from furnclip.runs import model_folder

_FAMILIES = {"clip": CLIP, "siglip": SIGLIP}
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


@dataclass(frozen=True)
class WeightIndex:
    """`model.safetensors.index.json`: the file of each weight."""

    weight_map: dict[str, str]


def load_clip(name: str, config: ModelConfig, *, runs: Path | None = None) -> Clip:
    """The model called `name`, on the device and in the precision of `config`.

    `name`: a run under `runs`, a folder, `furnclip-tiny`, or a hub id (at `config.revision`).
    """
    clip = load_float32(name, config, runs=runs)
    device = choose_device(config.device)
    return clip.place(device, choose_precision(config.precision, clip.module, device))


def load_float32(name: str, config: ModelConfig, *, runs: Path | None = None) -> Clip:
    """The model as its weights are, on the CPU.

    Raises `ModelError` or `InputError` where weights, tokenizer or preprocessing do not fit together: each
    of them would otherwise give vectors that mean nothing, without a word.
    """
    source = _source(name, runs)
    hub: dict[str, Any] = {"trust_remote_code": False}
    if not Path(source).is_dir():
        hub["revision"] = config.revision
    with quiet(), _explained(name):
        source, settings = _settings(source, hub)
        family = _FAMILIES.get(settings.model_type)
        if family is None:
            hint = "choose a CLIP or SigLIP checkpoint, e.g. `openai/clip-vit-base-patch32`"
            raise ModelError(f"`{name}` is a `{settings.model_type}` model, not CLIP or SigLIP", hint=hint)
        if Path(source).is_dir():  # of a converted model too
            hub.pop("revision", None)
        module, report = AutoModel.from_pretrained(
            source,
            dtype="float32",
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below in plain words
            **hub,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        pixel_config, _ = ImageProcessingMixin.get_image_processor_dict(source, **hub)
        _check_weights(module, report, name=name)
        side_px = int(settings.vision_config.image_size)
        preprocessing = Preprocessing.from_config(pixel_config, image_px=side_px, name=name)
        clip = Clip(module, tokenizer, name=name, family=family, preprocessing=preprocessing)
        if problem := tokenizer_problem(clip.tokenize, family, settings.text_config):
            hint = "restore `tokenizer.json` and `tokenizer_config.json` from the model's own repository"
            raise ModelError(f"the tokenizer of `{name}` {problem}", hint=hint)
    return clip


def _settings(source: str, hub: dict[str, Any]) -> tuple[str, Any]:
    """Folder or hub id, and its configuration; a model that is in open_clip's format alone is converted.

    Some repositories hold both, with a `config.json` that only their own code can read.
    """
    settings, problem = None, None
    try:
        settings = AutoConfig.from_pretrained(source, **hub)
    except (OSError, ValueError, KeyError) as error:
        problem = error
    if settings is None or settings.model_type not in _FAMILIES:
        folder, remade = Path(source), None
        if not folder.is_dir():
            remade = from_hub(source, hub["revision"])
        elif (folder / CONFIG_NAME).is_file():
            remade = converted(folder)
        if remade is not None:
            return str(remade), AutoConfig.from_pretrained(remade, trust_remote_code=False)
    if problem is not None:
        raise problem
    return source, settings


def _check_weights(module: Any, report: Mapping[str, Any], *, name: str) -> None:
    """Every weight is in the file, every weight in the file is used, and all of them are numbers."""
    missing, unexpected = (sorted(report[key]) for key in ("missing_keys", "unexpected_keys"))
    others = sorted(str(key[0]) for key in report["mismatched_keys"])
    prefixes = {
        found.removesuffix(missing[0]) for found in unexpected if missing and found.endswith(missing[0])
    }
    wrapped = [prefix for prefix in prefixes if {prefix + wanted for wanted in missing} <= set(unexpected)]
    hint = "save the model again with `save_pretrained`, or choose another one"
    if wrapped:
        problem = f"every name begins with `{wrapped[0]}`, as a wrapper writes them"
        hint = "save the model inside the wrapper: `model.module.save_pretrained(...)` or the like"
    elif others:
        problem = f"the shape of {_listed(others)} another in the file"
    elif missing:
        problem = f"{_listed(missing)} missing from the file, and would be random"
    elif unexpected:
        problem = f"{_listed(unexpected)} in the file, and this model has no place for them"
    else:
        bad = [key for key, value in module.state_dict().items() if not value.isfinite().all()]
        problem = f"{_listed(bad)} not finite" if bad else ""
    if problem:
        raise ModelError(f"the weights of `{name}` do not fit the model: {problem}", hint=hint)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(f"`{name}`" for name in names[:2]) + more + (" is" if len(names) == 1 else " are")


def _source(name: str, runs: Path | None) -> str:
    """A folder, or a hub id, as the string that transformers wants."""
    if name == BUNDLED:
        bundled = Path(furnclip.__file__).parent / "demo" / "furnclip_tiny"
        if not (bundled / "config.json").is_file():
            raise ModelError(f"the bundled model `{BUNDLED}` is missing", hint="install furnclip again")
        return str(bundled)
    if runs is not None and Path(name).name == name and (runs / name).is_dir():
        return _checked_folder(model_folder(runs / name))
    if name and Path(name).expanduser().is_dir():
        return _checked_folder(Path(name).expanduser())
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder `{name}`", hint="give a folder, a run's name or a hub id")
    return name


def _checked_folder(folder: Path) -> str:
    """The folder, once it holds a configuration and weights that can be opened without harm.

    transformers would wait for a FIFO, fetch an adapter's base from the hub, and open any path that an
    index of weights names.
    """
    hint = "give the folder that `save_pretrained` wrote, or a hub id"
    if (folder / "adapter_config.json").exists():
        hint = "merge it into its base first (PEFT: `merge_and_unload`), then `save_pretrained`"
        raise ModelError(f"`{folder}` holds an adapter, not a whole model", hint=hint)
    if not any((folder / file).exists() for file in ("config.json", CONFIG_NAME)):
        raise ModelError(f"`{folder}` has no `config.json`, so it is not a model folder", hint=hint)
    for file in folder.iterdir():
        if not file.is_file() and not file.is_dir():
            raise ModelError(f"`{file}` is not a regular file", hint="remove or replace it")
    if not any(file for pattern in _WEIGHT_PATTERNS for file in folder.glob(pattern)):
        hint = "copy the weights there, or train again"
        raise ModelError(f"`{folder}` has no weights (no `model.safetensors`)", hint=hint)
    hint = "download the model again"
    for path in folder.glob("*.index.json"):  # of weights: it names files beside it, and nothing else
        index = read_json(path, WeightIndex, what="the index of weights", hint=hint)
        for name in sorted(set(index.weight_map.values())):
            if not name or name != Path(name).name or "\\" in name:
                raise ModelError(f"`{path}` names the file `{name}`, which is not in its folder", hint=hint)
            if not (folder / name).is_file():
                raise ModelError(f"`{path}` names the file `{name}`, which is not there", hint=hint)
    return str(folder)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except FurnclipError:
        raise
    except Exception as error:  # transformers answers a damaged file with nearly anything
        if is_out_of_memory(error):
            raise
        hint = "check the name and the network, or download it once and give its folder to `--model`"
        if isinstance(error, ImportError):  # SigLIP's own tokenizer
            hint = "install what is missing, e.g. `pip install sentencepiece protobuf`"
        problem = first_line(error).rstrip(".")
        raise ModelError(f"the model `{name}` cannot be loaded: {problem}", hint=hint) from None

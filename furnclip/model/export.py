"""A `Clip` as a folder of ONNX files (`light`), compared with torch before it gets its name.

The 8-bit text tower is taken for searching where nobody would notice: on the catalogue's own captions every
cosine to float32 is at least `LEAST_COSINE`, and of the ten products found `LEAST_OVERLAP` are the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from furnclip import console
from furnclip.config import Config
from furnclip.errors import InputError, ModelError
from furnclip.journal import MANIFEST_NAME, replacing_folder, write_json, write_text
from furnclip.model import light
from furnclip.model.clip import Clip
from furnclip.model.light import LightEncoder, LightModel, is_unchanged, is_whole, stamp
from furnclip.model.loading import load_float32
from furnclip.model.onnx import write_tower
from furnclip.model.towers import TOWERS, Tower
from furnclip.relevance import default_caption
from furnclip.runs import latest_run
from furnclip.vectors import Floats, column_name, top_k
from furnclip.vectors.parquet import SHOWN, VectorFile, matrix_of

EXACT_COSINE = 0.9999
LEAST_COSINE, LEAST_OVERLAP = 0.995, 0.99
_MOST_CAPTIONS = 300
_BATCH_ROWS, _MOST_BATCHES = 1024, 20
_EXACT_CAPTIONS = 32  # compared with torch
_IMAGES = 4
_PHRASES = (
    "a red chair",
    "walnut mid-century sideboard",
    "sofa",
    "a photo of a grey velvet armchair, brass legs",
)
_KEEP_OLD_S = 3600.0  # for searchers that opened the table before this one


def write_onnx(
    clip: Clip,
    folder: Path,
    config: Config,
    captions: Sequence[str],
    *,
    int8: Sequence[Tower],
    gallery: Floats | None = None,
) -> LightEncoder:
    """Write both towers of `clip`, in float32, into `folder`, and those of `int8` in 8 bits as well.

    `gallery`: vectors (N, D) of products; with them the text tower to search with is chosen.
    Raises `ModelError` where float32 does not come out as torch has it; then there is no folder.
    """
    if clip.precision.precision != "fp32":
        clip = load_float32(clip.name, config.model, runs=config.paths.runs)
    names = {"text.onnx": False, "vision.onnx": False} | {f"{tower}_int8.onnx": True for tower in int8}
    with replacing_folder(folder) as aside:
        for name, bits_8 in names.items():
            tower: Tower = "text" if name.startswith("text") else "vision"
            write_tower(clip, tower, aside / name, int8=bits_8)
        _write_tokenizer(clip, aside / light.TOKENIZER)
        write_json(aside / light.PREPROCESSOR, clip.preprocessing.to_config())
        about = LightModel(
            name=clip.name,
            fingerprint=clip.fingerprint,
            dimension=clip.dimension,
            image_px=clip.image_px,
            text="text.onnx",
            punctuation=clip.tokenize.punctuation,
            files={path.name: path.stat().st_size for path in sorted(aside.iterdir())},
            cosines={},
            sources={clip.name: stamp(clip.name, config)},
        )
        write_json(aside / MANIFEST_NAME, asdict(about))
        asked = [*_PHRASES, *captions[:_EXACT_CAPTIONS]]
        about = replace(about, cosines=_compared(clip, aside, names, asked))
        write_text(aside / light.README, _readme(clip, about))
        write_json(aside / MANIFEST_NAME, asdict(about))
        if gallery is not None:  # before the folder has its name: whole ones are not looked at again
            _choose_text(LightEncoder(aside), captions, gallery)
    return LightEncoder(folder)


def export_onnx(folder: Path, config: Config, *, name: str | None, int8: bool) -> tuple[LightEncoder, bool]:
    """The model `name` (default: the latest run, else the base) in `folder`; whether it was there before.

    Raises `InputError` for a folder that holds anything but an earlier export.
    """
    runs = config.paths.runs
    try:
        LightEncoder(folder)
    except (OSError, InputError):  # what is there now would be replaced
        if folder.is_file() or any(folder.glob("*")):
            hint = "give a new folder to `--onnx`"
            raise InputError(f"`{folder}` is there and is no export", hint=hint) from None
    clip = load_float32(name or latest_run(runs) or config.model.name, config.model, runs=runs)
    towers: tuple[Tower, ...] = TOWERS if int8 else ()
    before = is_whole(folder, clip.fingerprint)
    if before and {f"{tower}_int8.onnx" for tower in towers} <= before.files.keys():
        return LightEncoder(folder), True
    captions = _sample(config.paths.vectors)[0] if config.paths.vectors.exists() else []
    return write_onnx(clip, folder, config, captions, int8=towers), False


def _compared(
    clip: Clip, folder: Path, names: Mapping[str, bool], captions: Sequence[str]
) -> dict[str, float]:
    """The lowest cosine of each file to torch, on captions and on random images."""
    encoder = LightEncoder(folder)
    shape = (_IMAGES, clip.image_px, clip.image_px, 3)
    squares = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    texts, ids = clip.encode_texts(captions), encoder.token_ids(captions)
    images = clip.encode_images([Image.fromarray(square) for square in squares])
    found = {}
    for name, bits_8 in names.items():
        exact, given = (texts, ids) if name.startswith("text") else (images, squares)
        vectors = encoder.run(name, given)
        cosine = float((vectors * exact).sum(axis=1).min(initial=1.0))
        if not cosine >= EXACT_COSINE and not bits_8:
            raise ModelError(
                f"`{clip.name}` as ONNX gives other vectors than by torch: {name}, cosine {cosine:.5f}",
                hint="nothing was written; try another version of `onnxruntime`",
            )
        found[name] = round(cosine, 6)
    return found


def _write_tokenizer(clip: Clip, path: Path) -> None:
    """The tokenizer with the length and padding of `inputs.TextInput` in it."""
    from tokenizers import Tokenizer

    theirs, rule = clip.tokenizer, clip.tokenize
    backend = getattr(theirs, "backend_tokenizer", None)
    if backend is None:
        hint = "searching goes by torch with this model"
        raise ModelError(f"the tokenizer of `{clip.name}` exists in Python only", hint=hint)
    copy = Tokenizer.from_str(backend.to_str())
    copy.enable_truncation(rule.length, direction=theirs.truncation_side)
    copy.enable_padding(
        direction=theirs.padding_side,
        pad_id=theirs.pad_token_id or 0,
        pad_token=theirs.pad_token or "",
        length=None if rule.pads_to_longest else rule.length,
    )
    copy.save(str(path))


def _readme(clip: Clip, about: LightModel) -> str:
    from furnclip import __version__

    return (Path(__file__).with_name("onnx_readme.md").read_text(encoding="utf-8")).format(
        name=clip.name,
        version=__version__,
        family=clip.family.name.upper(),
        dimension=clip.dimension,
        side=clip.image_px,
        resample=int(clip.preprocessing.resample),
        punctuation="" if about.punctuation else ", no punctuation",
        cosines=", ".join(f"`{name}` {cosine:.6f}" for name, cosine in about.cosines.items()),
    )


def write_beside(uri: str, vectors: Path, clips: Mapping[str, Clip], config: Config) -> None:
    """Write what a search in the table `uri` needs without torch; what is there already stays.

    `clips`: the models that made `vectors`, by label. With one that cannot be written, searches need torch.
    """
    remote = uri.startswith("s3://")
    for label, clip in clips.items():
        home = light.home_of(uri, clip.fingerprint, config)
        if before := light.is_here(uri, clip.fingerprint, config):
            if is_unchanged(before, clip.name, config):
                continue
            sources = {**before.sources, clip.name: stamp(clip.name, config)}
            write_json(home / MANIFEST_NAME, asdict(replace(before, sources=sources)))
        else:
            captions, (gallery,) = _sample(vectors, column_name("vec", label))
            try:
                write_onnx(clip, home, config, captions, int8=("text",), gallery=gallery)
            except ModelError as error:
                console.note(f"searching needs torch: {error.message}")
                continue
        if remote:
            with light.bucket_of(uri, clip.fingerprint, config) as (manager, prefix):
                manager.upload_dataset(home, prefix)
    wanted = {clip.fingerprint for clip in clips.values()}
    for path in () if remote else light.home_of(uri, "", config).glob("*"):  # of earlier tables
        with suppress(OSError):
            if path.name not in wanted and time.time() - path.stat().st_mtime > _KEEP_OLD_S:
                shutil.rmtree(path)


def _sample(vectors: Path, *columns: str) -> tuple[list[str], list[Floats]]:
    """Captions of the first products, and the vectors (N, D) of more of them in each of `columns`."""
    batches = VectorFile(vectors).batches([*SHOWN, *columns], rows=_BATCH_ROWS)
    table = pa.Table.from_batches(islice(batches, _MOST_BATCHES))
    rows = table.slice(0, _MOST_CAPTIONS).select(SHOWN).to_pylist()
    return list(filter(None, map(default_caption, rows))), [matrix_of(table[name])[0] for name in columns]


def _choose_text(encoder: LightEncoder, captions: Sequence[str], gallery: Floats) -> None:
    """Take the 8-bit text tower for searching where it answers as float32 does; else remove it."""
    folder, about = encoder.folder, encoder.about
    exact = encoder.encode_texts(captions)
    encoder.text = "text_int8.onnx"
    rounded = encoder.encode_texts(captions)
    cosine = float((exact * rounded).sum(axis=1).min(initial=1.0))
    best = [top_k(vectors, gallery, 10)[1] for vectors in (exact, rounded)]
    same = [len({*first} & {*second}) / max(1, len(first)) for first, second in zip(*best, strict=True)]
    if cosine >= LEAST_COSINE and (not same or np.mean(same) >= LEAST_OVERLAP):
        about = replace(about, text="text_int8.onnx")
    else:
        files = {name: size for name, size in about.files.items() if "_int8" not in name}
        about = replace(about, files=files)
    write_json(folder / MANIFEST_NAME, asdict(about))
    for name in encoder.about.files.keys() - about.files.keys():
        (folder / name).unlink()

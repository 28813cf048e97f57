"""`LightEncoder`: the towers of one model as ONNX files, run without torch.

    work/index.model/FINGERPRINT/   beside the table `work/index.lance`, for each model that made its vectors
        text.onnx                   and text_int8.onnx where it answers as well; weights in NAME.onnx.data
        vision.onnx
        tokenizer.json              with its length and padding, for the `tokenizers` library
        preprocessor_config.json    what becomes of an image before it is a square of pixels
        README.md                   how to use them without furnclip
        manifest.json               written last

`export` writes such a folder; that of a table in a bucket is copied to `work/cache/light` when it is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

import furnclip
from furnclip.errors import InputError, ModelError, first_line
from furnclip.journal import MANIFEST_NAME, read_json
from furnclip.model.inputs import Preprocessing, normalize_text
from furnclip.runs import MODEL

if TYPE_CHECKING:
    from PIL import Image

    from furnclip.config import Config
    from furnclip.model.clip import Clip
    from furnclip.storage import S3Manager

BUNDLED = "furnclip-tiny"
TOKENIZER, PREPROCESSOR, README = "tokenizer.json", "preprocessor_config.json", "README.md"
_OPENED_TWICE = 2
Encoder = Union["Clip", "LightEncoder"]  # by torch, or without
_HINT = "remove that folder and run `furnclip embed` again"


@dataclass(frozen=True)
class LightModel:
    """`manifest.json`. `sources`: each name of the model, and how its own files looked, see `stamp`.

    A run that learnt nothing is the base by another name.
    """

    name: str
    fingerprint: str
    dimension: int
    image_px: int
    text: Literal["text.onnx", "text_int8.onnx"]  # the file to take for texts
    punctuation: bool  # whether texts keep theirs
    files: dict[str, int]  # sizes in bytes
    cosines: dict[str, float]  # of each file's vectors to those of torch, the lowest
    sources: dict[str, dict[str, list[int] | str]]
    format: Literal[1] = 1


def in_chunks(
    encode: Callable[[list[Any]], NDArray[np.float32]], items: Sequence[Any], dimension: int, size: int = 64
) -> NDArray[np.float32]:
    """Vectors of texts or images, (B, D), `size` at a time so that a long list cannot exhaust memory.

    Texts of one length go together, with little padding.
    """
    order = sorted(range(len(items)), key=lambda n: len(items[n]) if isinstance(items[n], str) else n)
    vectors = np.empty((len(items), dimension), dtype=np.float32)
    for start in range(0, len(items), size):
        chosen = order[start : start + size]
        vectors[chosen] = encode([items[n] for n in chosen])
    return vectors


class LightEncoder:
    """Texts and squares to unit vectors, as `Clip` gives them; each tower is loaded when it is first used.

    Raises `InputError` for a damaged manifest and `ModelError` for towers that cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = about = read_json(folder / MANIFEST_NAME, LightModel, what="the model card", hint=_HINT)
        self.name, self.fingerprint, self.text = about.name, about.fingerprint, str(about.text)
        self.dimension, self.image_px = about.dimension, about.image_px
        self._sessions: dict[str, Any] = {}
        self._opened: Counter[str] = Counter()

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(B, D) unit vectors, in the order given."""
        return in_chunks(lambda chunk: self.run(self.text, self.token_ids(chunk)), texts, self.dimension)

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(B, D) unit vectors; images of any size, squares are best made by `images.load_square`."""
        steps = self._preprocessing
        return in_chunks(lambda chunk: self.run("vision.onnx", steps.squares(chunk)), images, self.dimension)

    def token_ids(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(B, T) token ids, cut and padded as the model's own tokenizer does."""
        readable = [normalize_text(text, punctuation=self.about.punctuation) for text in texts]
        return np.array([found.ids for found in self._tokenizer.encode_batch(readable)], dtype=np.int64)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        except Exception as error:  # the library has no class of its own for them
            raise self._broken(TOKENIZER, error) from None
        tokenizer.encode_special_tokens = True  # spelled out in a title, `<|endoftext|>` is text
        return tokenizer

    @cached_property
    def _preprocessing(self) -> Preprocessing:
        path = self.folder / PREPROCESSOR
        config = read_json(path, dict[str, Any], what="the preprocessing", hint=_HINT)
        return Preprocessing.from_config(config, image_px=self.image_px, name=self.name)

    def run(self, name: str, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """What the tower in file `name` makes of token ids or pixels, (B, D)."""
        # Packing the weights takes seven times as long as opening the file, and halves the time of a pass:
        # who asks only once, from a shell, does not wait for it.
        if self._opened[name] < _OPENED_TWICE:
            self._sessions[name] = self._open(name, packs=self._opened[name] > 0)
            self._opened[name] += 1
        session = self._sessions[name]
        vectors: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: inputs})[0]
        return vectors

    def _open(self, name: str, *, packs: bool) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.disable_prepacking", "0" if packs else "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it mostly waits
        path, on_cpu = str(self.folder / name), ["CPUExecutionProvider"]
        try:
            return onnxruntime.InferenceSession(path, options, providers=on_cpu)
        except Exception as error:  # RuntimeException, Fail, NoSuchFile ... without a common class
            raise self._broken(name, error) from None

    def _broken(self, name: str, error: Exception) -> ModelError:
        return ModelError(f"`{self.folder / name}` cannot be used: {first_line(error)[:200]}", hint=_HINT)


def is_whole(folder: Path, fingerprint: str) -> LightModel | None:
    """What is in `folder`, if that is this model and all of its files are there."""
    try:
        about = read_json(folder / MANIFEST_NAME, LightModel, what="the model card", hint=_HINT)
        sizes = {name: (folder / name).stat().st_size for name in about.files}
    except (OSError, InputError):
        return None
    return about if about.fingerprint == fingerprint and sizes == about.files else None


def home_of(uri: str, fingerprint: str, config: Config) -> Path:
    """Where the model for the table `uri` lies on this machine."""
    if uri.startswith("s3://"):
        return config.paths.cache / "light" / fingerprint
    return Path(uri.removesuffix(".lance") + ".model", fingerprint)


def is_here(uri: str, fingerprint: str, config: Config) -> LightModel | None:
    """The model beside the table `uri`, brought from its bucket; None where there is none."""
    home = home_of(uri, fingerprint, config)
    about = is_whole(home, fingerprint)
    if about is None and uri.startswith("s3://"):
        with bucket_of(uri, fingerprint, config) as (manager, prefix):
            if manager.find(f"{prefix}/{MANIFEST_NAME}") is not None:
                manager.download_dataset(prefix, home)
        about = is_whole(home, fingerprint)
    return about


@contextmanager
def bucket_of(uri: str, fingerprint: str, config: Config) -> Iterator[tuple[S3Manager, str]]:
    """The bucket of a table, and the prefix of its model there."""
    from furnclip.storage import S3Manager

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with S3Manager.from_config(config.storage.model_copy(update={"bucket": bucket})) as manager:
        yield manager, f"{key.removesuffix('.lance')}.model/{fingerprint}"


def stamp(name: str, config: Config) -> dict[str, list[int] | str]:
    """Size and time of each file of the model called `name`, or its version where it has no files."""
    if name == BUNDLED:
        return {"furnclip": furnclip.__version__}
    run = config.paths.runs / name / MODEL
    folder = run if Path(name).name == name and run.is_dir() else Path(name).expanduser()
    if not folder.is_dir():
        return {"revision": config.model.revision}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def is_unchanged(about: LightModel, name: str, config: Config) -> bool:
    """Whether the model called `name` is this one, as far as its files tell, if they are here at all."""
    now, then = stamp(name, config), about.sources.get(name)
    if then is None:
        return False
    gone = "revision" in now and not then.keys() & {"revision", "furnclip"}
    return gone or now == then

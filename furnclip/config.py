"""Every setting, its default, unit and meaning; the only place that reads the environment.

A value is taken from the first of: a flag, an environment variable, `.env`, `furnclip.toml`, the
default here. `FURNCLIP_TRAIN__EPOCHS=3` sets `train.epochs`; `MODEL_NAME` and `OPENAI_API_KEY` work
as they are. `AWS_*` and `CUDA_VISIBLE_DEVICES` from `.env` are handed to the process, for the
libraries that read them. Relative paths are taken from the folder that `furnclip.toml` lies in.

The docstring under a field is its documentation: `config_template` prints it into the commented
`furnclip.toml` that `furnclip init` writes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from furnclip.errors import ConfigError, nearest
from furnclip.journal import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_NAME = "furnclip.toml"
_PREFIX = "FURNCLIP_"
_SEED_NAMES = {"MODEL_NAME": "FURNCLIP_MODEL__NAME", "OPENAI_API_KEY": "FURNCLIP_OPENAI_API_KEY"}
_FOR_LIBRARIES = ("AWS_", "CUDA_VISIBLE_DEVICES", "WANDB_", "HF_")

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


class DataPaths(_Section):
    """Where the catalogue is, what its columns are called, and where furnclip works."""

    products: Path = Path("products.csv")
    """the raw catalogue: .csv, .tsv, .jsonl or .parquet"""
    images: Path = Path("images")
    """the folder that picture paths in the catalogue are relative to"""
    work: Path = Path("work")
    """the folder for everything that furnclip writes"""
    id_column: str = "product_id"
    """column with the unique product id"""
    title_column: str = "title"
    """column with the product's title"""
    image_column: str = "image"
    """column with the picture's path; several are separated by `|`, the first that can be read is used"""
    group_column: str = ""
    """column that ties variants of one product together; empty: same id, picture or title"""

    @property
    def clean(self) -> Path:
        return self.work / "clean"

    @property
    def cleaned(self) -> Path:
        return self.clean / "cleaned.csv"

    @property
    def shards(self) -> Path:
        return self.work / "shards"

    @property
    def runs(self) -> Path:
        return self.work / "runs"

    @property
    def embeddings(self) -> Path:
        return self.work / "embeddings"

    @property
    def vectors(self) -> Path:
        return self.embeddings / "master_vectors.parquet"

    @property
    def index(self) -> Path:
        return self.work / "index.lance"

    @property
    def eval(self) -> Path:
        return self.work / "eval"

    @property
    def arena(self) -> Path:
        return self.work / "arena"

    @property
    def cache(self) -> Path:
        return self.work / "cache"


class ModelConfig(_Section):
    """The base model."""

    name: str = "openai/clip-vit-base-patch32"
    """hub id, folder or `furnclip-tiny`; MODEL_NAME in the environment works too"""
    revision: str = "main"
    """branch, tag or commit on the hub; ignored for folders"""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """arithmetic of the towers; `auto` measures which is faster on this machine"""


class CleaningConfig(_Section):
    """Cleaning titles and attributes with a vision model."""

    backend: Literal["openai", "live", "local"] = "openai"
    """`openai`: Batch API; `live`: any chat-completions server; `local`: free offline rules"""


class PrepConfig(_Section):
    """Splits, pictures and shards."""

    image_px: PositiveInt = 224
    """side of the square picture in the shards, in pixels"""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the pictures in the shards, 1 to 100"""
    train_fraction: Fraction = 0.8
    """share of product groups for training"""
    validation_fraction: Fraction = 0.1
    """share of product groups for validation; the rest is the test split"""
    workers: Annotated[int, Field(ge=0)] = 0
    """processes that decode pictures; 0: one a core"""


class TrainingConfig(_Section):
    """Fine-tuning."""

    scenario: str = "dual_lora"
    """`zero_shot`, `linear_probe`, `dual_lora`, `vision_lora`, `text_lora` or `all`"""
    epochs: PositiveInt = 10
    """passes over the training split"""
    lr: PositiveFloat = 1e-4
    """peak learning rate"""
    seed: int = 0
    """seed of data order, captions, augmentation and adapter weights"""


class EmbeddingConfig(_Section):
    """Turning the catalogue into vectors."""

    batch_size: PositiveInt = 64
    """pictures in one forward pass"""


class EvaluationConfig(_Section):
    """Measuring retrieval."""

    seed: int = 0
    """seed of the bootstrap"""


class SearchConfig(_Section):
    """Searching the catalogue."""

    k: PositiveInt = 10
    """number of hits"""


class ArenaConfig(_Section):
    """Blind voting in the terminal."""

    k: PositiveInt = 5
    """products in each row of results"""
    seed: int = 0
    """seed of the order of queries and of the sides"""
    viewer: str | tuple[str, ...] = "auto"
    """picture viewer: `auto`, `none`, `builtin`, or a command with {path}, {cols}, {rows}"""


class StorageConfig(_Section):
    """The S3 bucket; credentials come from boto3's own chain."""

    bucket: str = ""
    """bucket name; empty: no S3"""
    prefix: str = "furnclip"
    """key prefix inside the bucket"""
    endpoint_url: str = ""
    """endpoint of an S3-compatible server (MinIO, R2 ...); empty: AWS"""
    region: str = ""
    """region; empty: boto3's own chain decides"""


class Config(BaseSettings):
    """All settings. Build it with `load_config`; it cannot be changed afterwards."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        validate_default=True,
        protected_namespaces=(),
    )

    paths: DataPaths = DataPaths()
    model: ModelConfig = ModelConfig()
    clean: CleaningConfig = CleaningConfig()
    prepare: PrepConfig = PrepConfig()
    train: TrainingConfig = TrainingConfig()
    embed: EmbeddingConfig = EmbeddingConfig()
    eval: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    arena: ArenaConfig = ArenaConfig()
    storage: StorageConfig = StorageConfig()
    openai_api_key: SecretStr = SecretStr("")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load_config` passes flags and file together; taking them apart here lets the environment
        # come between the two.
        assert isinstance(init_settings, InitSettingsSource)
        given = init_settings.init_kwargs
        environment = _EnvironmentSource(settings_cls, given.get("_environment", {}))
        return (
            InitSettingsSource(settings_cls, given.get("_flags", {})),
            environment,
            InitSettingsSource(settings_cls, given.get("_file", {})),
        )


class _EnvironmentSource(EnvSettingsSource):
    """Nested settings from a given mapping of variables instead of from `os.environ`."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items()}


def load_config(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """Settings from flags, environment, `.env`, the file and the defaults, checked.

    `path`: the file; None takes `furnclip.toml` of the current folder if there is one.
    `flags`: nested like the file, e.g. `{"train": {"epochs": 3}}`; they win over everything.

    Raises `ConfigError` for an unreadable file, an unknown key (with the nearest known one) or a
    value out of range (with the key, the value and what is allowed).
    """
    file_path = _config_file(path)
    folder = file_path.parent if file_path else Path.cwd()
    values = _read_toml(file_path) if file_path else {}
    variables = _environment(folder)
    try:
        config = Config(_flags=dict(flags or {}), _environment=variables, _file=values)  # type: ignore[call-arg]
    except ValidationError as error:
        raise _explain(error, file_path) from None
    return config.model_copy(update={"paths": _anchored(config.paths, folder)})


def _config_file(path: Path | None) -> Path | None:
    if path is None:
        default = Path.cwd() / CONFIG_NAME
        return default if default.is_file() else None
    if not path.is_file():
        raise ConfigError(
            f"there is no configuration file `{path}`",
            hint="run `furnclip init` to write one, or leave `--config` out for the defaults",
        )
    return path.resolve()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`{path}` is not valid TOML: {error}", hint="mend that line, or run `furnclip init --force`"
        ) from None


def _environment(folder: Path) -> dict[str, str]:
    """Variables with our prefix, from `.env` and the process; others from `.env` are exported."""
    from_file = {k: v for k, v in dotenv_values(folder / ".env").items() if v is not None}
    for name, value in from_file.items():
        if name.startswith(_FOR_LIBRARIES):
            os.environ.setdefault(name, value)
    merged: dict[str, str] = {}
    for source in (from_file, os.environ):  # the process wins over `.env`
        for name, value in source.items():
            target = _SEED_NAMES.get(name, name).upper()
            if target.startswith(_PREFIX) and value:
                merged[target] = value
    return merged


def _anchored(paths: DataPaths, folder: Path) -> DataPaths:
    fields = ("products", "images", "work")
    return paths.model_copy(update={name: folder / getattr(paths, name).expanduser() for name in fields})


def _explain(error: ValidationError, file_path: Path | None) -> ConfigError:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    where = f" (in `{file_path.name}`, a flag or the environment)" if file_path else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown setting `{key}`{where}", hint=_suggest(location))
    if location and location[0] == "openai_api_key":
        return ConfigError("OPENAI_API_KEY is not a text", hint="set OPENAI_API_KEY to your key")
    given = json.dumps(first.get("input"), default=str)
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(
        f"`{key}` cannot be {given}: {message[:1].lower()}{message[1:]}",
        hint=f"see `{key}` in `furnclip.toml` or `furnclip init` for what it means and its default",
    )


def _suggest(location: list[str]) -> str:
    if len(location) == 1:
        known = list(sections())
        close = nearest(location[0], known)
    else:
        known = [f"{location[0]}.{name}" for name in sections()[location[0]].model_fields]
        close = nearest(".".join(location[:2]), known)
    return f"did you mean `{close}`?" if close else f"known here: {', '.join(known)}"


def sections() -> dict[str, type[BaseModel]]:
    """Section name -> its model, in pipeline order."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def config_template() -> str:
    """The commented `furnclip.toml`: every key, its default, and its meaning and unit."""
    return "\n".join(_template_lines()) + "\n"


def _template_lines() -> Iterator[str]:
    yield "# Settings of furnclip. Every key is here with its default; change what you need."
    yield "# A flag wins over the environment, that over .env, that over this file."
    for section, model in sections().items():
        yield ""
        yield f"# {model.__doc__}"
        yield f"[{section}]"
        for name, field in model.model_fields.items():
            default = toml_value(field.get_default(call_default_factory=True))
            meaning = " ".join((field.description or "").split())
            yield f"{name} = {default}  # {meaning}"


def toml_value(value: object) -> str:
    """A default as TOML text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
            if value
            else "{}"
        )
    return json.dumps(str(value), ensure_ascii=False)


ENV_EXAMPLE = """\
# Copy to .env and fill in; furnclip reads it, git ignores it.
OPENAI_API_KEY=
AWS_ACCESS_KEY_ID=
AWS_SECRET_ACCESS_KEY=
AWS_DEFAULT_REGION=
MODEL_NAME=openai/clip-vit-base-patch32
CUDA_VISIBLE_DEVICES=0
"""


def write_templates(folder: Path, *, force: bool = False) -> list[Path]:
    """Write `furnclip.toml` and `.env.example` into `folder`; the paths written.

    Raises `ConfigError` when one exists and `force` is off; then nothing is written.
    """
    contents = {folder / CONFIG_NAME: config_template(), folder / ".env.example": ENV_EXAMPLE}
    existing = [path.name for path in contents if path.exists()]
    if existing and not force:
        raise ConfigError(f"`{existing[0]}` exists already", hint="add `--force` to overwrite it")
    for path, text in contents.items():
        write_text(path, text)
    return list(contents)


def environment_variables() -> Mapping[str, str]:
    """The process environment, for code that needs to look at a terminal or a launcher.

    Rooms ask here instead of reading `os.environ`, so that there is one place to look.
    """
    return os.environ

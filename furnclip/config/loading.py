"""Settings from flags, environment, `.env`, the file and the defaults, in this order."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from furnclip.config.sections import (
    ArenaConfig,
    CleaningConfig,
    DataPaths,
    EmbeddingConfig,
    EvaluationConfig,
    ModelConfig,
    PrepConfig,
    SearchConfig,
    StorageConfig,
    TrainingConfig,
)
from furnclip.errors import ConfigError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_NAME = "furnclip.toml"
_PREFIX = "FURNCLIP_"
_SHORT_NAMES = {
    "MODEL_NAME": "FURNCLIP_MODEL__NAME",
    "OPENAI_API_KEY": "FURNCLIP_OPENAI_API_KEY",
    "FURNCLIP_VIEWER": "FURNCLIP_ARENA__VIEWER",
}
_FOR_LIBRARIES = ("AWS_", "CUDA_VISIBLE_DEVICES", "WANDB_", "HF_")


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
            target = _SHORT_NAMES.get(name, name).upper()
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


def environment_variables() -> Mapping[str, str]:
    """The process environment, for code that needs to look at a terminal or a launcher.

    Rooms ask here instead of reading `os.environ`, so that there is one place to look.
    """
    return os.environ

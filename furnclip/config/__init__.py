"""Every setting, its default, unit and meaning; the only place that reads the environment.

A value is taken from the first of: a flag, an environment variable, `.env`, `furnclip.toml`, the
default here. `FURNCLIP_TRAIN__EPOCHS=3` sets `train.epochs`; `MODEL_NAME` and `OPENAI_API_KEY` work
as they are. Relative paths are taken from the folder that `furnclip.toml` lies in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tomli
from pydantic import ValidationError

from furnclip import console
from furnclip.config.environment import adopt_dotenv as adopt_dotenv
from furnclip.config.environment import environment_variables as environment_variables
from furnclip.config.environment import merged, nested, read_text
from furnclip.config.environment import torchrun_launch as torchrun_launch
from furnclip.config.paths import DataPaths as DataPaths
from furnclip.config.paths import StorageConfig as StorageConfig
from furnclip.config.sections import ArenaConfig as ArenaConfig
from furnclip.config.sections import CleaningConfig as CleaningConfig
from furnclip.config.sections import Config as Config
from furnclip.config.sections import EmbeddingConfig as EmbeddingConfig
from furnclip.config.sections import EvaluationConfig as EvaluationConfig
from furnclip.config.sections import FetchConfig as FetchConfig
from furnclip.config.sections import ModelConfig as ModelConfig
from furnclip.config.sections import PrepConfig as PrepConfig
from furnclip.config.sections import SearchConfig as SearchConfig
from furnclip.config.sections import ServeConfig as ServeConfig
from furnclip.config.sections import TrainingConfig as TrainingConfig
from furnclip.config.sections import sections as sections
from furnclip.config.trust import SETTINGS, FolderSetting, require_encryption, require_permission
from furnclip.config.trust import VIEWER_WORDS as VIEWER_WORDS
from furnclip.errors import ConfigError, nearest
from furnclip.journal import write_text

_FILE_NAME = "furnclip.toml"
_KEYS = (
    *("OPENAI_API_KEY", "FURNCLIP_OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)
_ENV_EXAMPLE = """\
# Copy to .env and fill in; furnclip reads it, git ignores it.
OPENAI_API_KEY=
AWS_ACCESS_KEY_ID=
AWS_SECRET_ACCESS_KEY=
AWS_DEFAULT_REGION=
MODEL_NAME=openai/clip-vit-base-patch32
CUDA_VISIBLE_DEVICES=0
"""


def load_config(
    path: Path | None = None, flags: Mapping[str, Any] | None = None, *, trust: bool = False
) -> Config:
    """Settings from flags, environment, `.env`, the file and the defaults, checked.

    `path`: the file; None takes `furnclip.toml` of the current folder if there is one. `flags`: nested like
    the file. `trust`: allow the folder's sensitive settings without a question, and remember that.
    Raises `ConfigError` for an unreadable file, an unknown key (with the nearest known one), a value out
    of range (with the key, the value and what is allowed) or a sensitive setting that is not allowed.
    """
    file = settings_file(path)
    from_toml: dict[str, Any] = {}
    if file.exists():
        try:
            from_toml = tomli.loads(read_text(file))
        except (tomli.TOMLDecodeError, RecursionError) as error:
            hint = "fix that line, or run `furnclip init --force`"
            raise ConfigError(f"`{file}` is not valid TOML: {error}", hint=hint) from None
    from_dotenv = adopt_dotenv(file.parent, trust=trust)
    _check_keys({**from_dotenv, **environment_variables()})
    own = merged(nested(environment_variables()), flags or {})
    files = {file.parent / ".env": nested(from_dotenv), file: from_toml}
    from_files = _permitted(files, own, trust=trust)
    try:
        config = Config(**merged(from_files, own))
    except ValidationError as error:
        raise _explain(error, file) from None
    _check_addresses(config, own)
    paths = {name: file.parent / path.expanduser() for name, path in config.paths if isinstance(path, Path)}
    return config.model_copy(update={"paths": config.paths.model_copy(update=paths)})


def settings_file(path: Path | None) -> Path:
    """The settings file: `path`, or the one of the current folder, which may be missing."""
    if path is None:
        return Path.cwd() / _FILE_NAME
    if not path.exists():
        raise ConfigError(
            f"there is no configuration file `{path}`",
            hint="run `furnclip init` to write one, or leave `--config` out for the defaults",
        )
    return path.resolve()


def _permitted(
    files: Mapping[Path, dict[str, Any]], own: Mapping[str, Any], *, trust: bool
) -> dict[str, Any]:
    """The settings of the files, highest precedence first, once the user permits the sensitive ones.

    The user's own values need no permission. A viewer that is not permitted is replaced by `auto`.
    """
    settings: dict[str, Any] = {}
    for values in files.values():
        settings = merged(values, settings)
    for name, danger in SETTINGS.items():
        file = next((file for file, values in files.items() if _value(values, name) is not None), None)
        if file is None or _value(own, name) is not None or _value(settings, name) is False:
            continue
        value = _value(settings, name)
        words = tuple(map(str, value)) if isinstance(value, list) else str(value)
        try:
            require_permission(FolderSetting(name, words, file, danger), trust=trust)
        except ConfigError as error:
            if name != "arena.viewer":
                raise
            console.warn(f"{error.message}; images are shown without it ({error.hint})")
            settings["arena"] = {**settings["arena"], "viewer": "auto"}
    return settings


def _value(values: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    table = values.get(section)
    return table.get(key) if isinstance(table, Mapping) else None


def _check_addresses(config: Config, own: Mapping[str, Any]) -> None:
    """No key in clear text to another machine that the user has not named; S3 sends only a session token."""
    key, token = config.openai_api_key.get_secret_value(), environment_variables().get("AWS_SESSION_TOKEN")
    if key or _value(own, "clean.base_url") is None:
        require_encryption("clean.base_url", config.clean.base_url)
    if token or _value(own, "storage.endpoint_url") is None:
        require_encryption("storage.endpoint_url", config.storage.endpoint_url)


def _check_keys(variables: Mapping[str, str]) -> None:
    """Raises `ConfigError` for a malformed key, before a library quotes it in its own error."""
    for name in _KEYS:
        key = variables.get(name, "")
        console.hide(key)
        if key and not re.fullmatch(r"[!-~]+", key if name.startswith("AWS_") else key.strip()):
            raise ConfigError(
                f"{name} contains a space, a line break or another character that no key has",
                hint="copy the key again, alone on one line and without quotes inside",
            )


def _explain(error: ValidationError, file: Path) -> ConfigError:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = list(sections())
        if len(location) > 1:
            known = [f"{location[0]}.{name}" for name in sections()[location[0]].model_fields]
        close = nearest(".".join(location[:2]), known)
        where = f" (in `{file.name}`, a flag or the environment)" if file.exists() else ""
        hint = f"did you mean `{close}`?" if close else f"known here: {', '.join(known)}"
        return ConfigError(f"unknown setting `{key}`{where}", hint=hint)
    if key == "openai_api_key":
        return ConfigError("OPENAI_API_KEY is not a text", hint="set OPENAI_API_KEY to your key")
    given = json.dumps(first.get("input"), default=str)
    message = first["msg"].removeprefix("Value error, ").partition(" for <class")[0]
    if key in sections():
        message = f"it is a section, which begins with the line `[{key}]`"
    return ConfigError(
        f"`{key}` cannot be {given}: {message[:1].lower()}{message[1:]}",
        hint=f"see `{key}` in `furnclip.toml` or `furnclip init` for what it means and its default",
    )


def config_template(values: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The commented `furnclip.toml`: every key, its meaning and its default, or the one in `values`.

    `values`: nested like the file.
    """
    lines = [
        "# Settings of furnclip. Every key is here with its default; change what you need.",
        "# A flag wins over the environment, that over .env, that over this file.",
    ]
    for section, model in sections().items():
        lines += ["", f"# {model.__doc__}", f"[{section}]"]
        meanings = model.meanings()
        for name, field in model.model_fields.items():
            # what the defaults are made of is written alike in JSON and in TOML
            value = values.get(section, {}).get(name, field.default)
            written = json.dumps(value, default=str, ensure_ascii=False)
            lines.append(f"{name} = {written}  # {meanings[name]}")
    return "\n".join(lines) + "\n"


def write_templates(
    folder: Path, *, force: bool = False, paths: Mapping[str, Any] = MappingProxyType({})
) -> list[Path]:
    """Write `furnclip.toml`, with these `paths`, and `.env.example` into `folder`; the paths written.

    Without `force`, a file that is the same already is left alone. Raises `ConfigError` when one differs;
    then nothing is written.
    """
    contents = {folder / _FILE_NAME: config_template({"paths": paths}), folder / ".env.example": _ENV_EXAMPLE}
    for path, text in list(contents.items() if not force else ()):
        if path.is_file() and path.read_bytes() == text.encode():
            del contents[path]
        elif path.exists():
            raise ConfigError(f"`{path.name}` exists already", hint="add `--force` to overwrite it")
    for path, text in contents.items():
        write_text(path, text)
    return list(contents)

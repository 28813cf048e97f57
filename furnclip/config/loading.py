"""Settings from flags, environment, `.env`, the file and the defaults, in this order."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from furnclip import console
from furnclip.config.environment import adopt_dotenv, environment_variables, merged, nested, read_text
from furnclip.config.sections import Config, DataPaths, sections
from furnclip.config.trust import SETTINGS, FolderSetting, require_encryption, require_permission
from furnclip.errors import ConfigError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_NAME = "furnclip.toml"
_KEYS = (
    *("OPENAI_API_KEY", "FURNCLIP_OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)


def load_config(
    path: Path | None = None, flags: Mapping[str, Any] | None = None, *, trust: bool = False
) -> Config:
    """Settings from flags, environment, `.env`, the file and the defaults, checked.

    `path`: the file; None takes `furnclip.toml` of the current folder if there is one.
    `flags`: nested like the file, e.g. `{"train": {"epochs": 3}}`; they win over everything.
    `trust`: allow the folder's sensitive settings without a question, and remember that.

    Raises `ConfigError` for an unreadable file, an unknown key (with the nearest known one), a value out
    of range (with the key, the value and what is allowed) or a sensitive setting that is not allowed.
    """
    file_path = _config_file(path)
    folder = file_path.parent if file_path else Path.cwd()
    from_toml = _read_toml(file_path) if file_path else {}
    from_dotenv = adopt_dotenv(folder, trust=trust)
    _check_keys({**from_dotenv, **environment_variables()})
    files = {folder / ".env": nested(from_dotenv), folder / (file_path or CONFIG_NAME): from_toml}
    own = merged(nested(environment_variables()), flags or {})
    try:
        config = Config(**merged(_permitted(files, own, trust=trust), own))
    except ValidationError as error:
        raise _explain(error, file_path) from None
    _check_addresses(config, own)
    return config.model_copy(update={"paths": _anchored(config.paths, folder)})


def prepare_environment(path: Path | None, *, trust: bool = False) -> None:
    """Hand the libraries' variables of the `.env` beside the settings file to the process.

    Commands do so before they import a library that reads them on import.
    """
    file_path = _config_file(path)
    adopt_dotenv(file_path.parent if file_path else Path.cwd(), trust=trust)


def _permitted(
    files: Mapping[Path, dict[str, Any]], own: Mapping[str, Any], *, trust: bool
) -> dict[str, Any]:
    """What the folder's files set, the first one first, after asking about what is sensitive in it.

    A viewer that is not allowed is replaced: images are shown without it.
    """
    together: dict[str, Any] = {}
    for values in reversed(list(files.values())):
        together = merged(together, values)
    for name, danger in SETTINGS.items():
        file = next((file for file, values in files.items() if _value(values, name) is not None), None)
        if file is None or _value(own, name) is not None:
            continue
        value = _value(together, name)
        words = tuple(map(str, value)) if isinstance(value, list) else str(value)
        try:
            require_permission(FolderSetting(name, words, file, danger), trust=trust)
        except ConfigError as error:
            if name != "arena.viewer":
                raise
            console.warn(f"{error.message}; images are shown without it ({error.hint})")
            together = merged(together, {"arena": {"viewer": "auto"}})
    return together


def _value(values: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    table = values.get(section)
    return table.get(key) if isinstance(table, Mapping) else None


def _check_addresses(config: Config, own: Mapping[str, Any]) -> None:
    """No key in clear text to another machine, unless the user named that machine.

    An address from the environment or a flag is fine where nothing secret goes over the wire: requests to
    S3 are signed with the secret key, and only a session token is sent along.
    """
    addresses = (
        ("clean.base_url", config.clean.base_url, bool(config.openai_api_key.get_secret_value())),
        (
            "storage.endpoint_url",
            config.storage.endpoint_url,
            bool(environment_variables().get("AWS_SESSION_TOKEN")),
        ),
    )
    for name, address, sends_secret in addresses:
        if sends_secret or _value(own, name) is None:
            require_encryption(name, address)


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


def _config_file(path: Path | None) -> Path | None:
    if path is None:
        default = Path.cwd() / CONFIG_NAME
        return default if default.exists() else None
    if not path.exists():
        raise ConfigError(
            f"there is no configuration file `{path}`",
            hint="run `furnclip init` to write one, or leave `--config` out for the defaults",
        )
    return path.resolve()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"`{path}` is not valid TOML: {error}", hint="fix that line, or run `furnclip init --force`"
        ) from None


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

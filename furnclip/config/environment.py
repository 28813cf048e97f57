"""Variables: the process environment, which is the user's, and `.env`, which is the folder's.

FURNCLIP_TRAIN__EPOCHS=3 sets `train.epochs`; lists are written `a,b` or as JSON, tables as JSON. Of `.env`
only the names listed here are taken, sensitive ones (see `trust`) with the user's permission; other names
are told in a warning. The libraries' variables are handed to the process, where they do not exist yet.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin

from dotenv import dotenv_values

from furnclip import console
from furnclip.config.sections import sections
from furnclip.config.trust import ALLOW_HTTP, FolderSetting, danger_of, require_encryption, require_permission
from furnclip.errors import ConfigError, nearest
from furnclip.journal import open_regular

_PREFIX = "FURNCLIP_"
_LARGEST_BYTES = 1 << 24
_SHORT_NAMES = {
    "MODEL_NAME": ("model", "name"),
    "OPENAI_API_KEY": ("openai_api_key",),
    "FURNCLIP_VIEWER": ("arena", "viewer"),
}
_FOR_LIBRARIES = re.compile(
    r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|REGION|DEFAULT_REGION|EC2_METADATA_DISABLED)"
    r"|AWS_(MAX_ATTEMPTS|RETRY_MODE|REQUEST_CHECKSUM_CALCULATION|RESPONSE_CHECKSUM_VALIDATION)"
    r"|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|TOKENIZERS_PARALLELISM"
    r"|HF_(TOKEN|HOME|HUB_CACHE|HUB_OFFLINE|HUB_\w+_TIMEOUT|HUB_DISABLE_\w+|HUB_ENABLE_HF_TRANSFER|XET_\w+)"
    r"|WANDB_(API_KEY|ENTITY|PROJECT|MODE|NAME|NOTES|TAGS|RUN_GROUP|JOB_TYPE|SILENT)"
)


def environment_variables() -> Mapping[str, str]:
    """The process environment, for code that needs to look at a terminal or a launcher.

    Rooms ask here instead of reading `os.environ`, so that there is one place to look.
    """
    return os.environ


def adopt_dotenv(folder: Path, *, trust: bool = False) -> dict[str, str]:
    """Hand the libraries' variables of `folder/.env` to the process; furnclip's own ones are returned.

    Call it before a library is imported that reads its variables then. Raises `ConfigError` for a
    sensitive one that the user has not allowed; names that are not taken are told in a warning.
    """
    path = folder / ".env"
    own: dict[str, str] = {}
    ignored: list[str] = []
    for name, value in _read_dotenv(path).items():
        danger = danger_of(name)
        if name in _SHORT_NAMES or (name.upper().startswith(_PREFIX) and name.upper() != ALLOW_HTTP):
            own[name] = value
        elif danger and value and name not in os.environ:
            require_permission(FolderSetting(name, value, path, danger), trust=trust)
            if name.endswith("_ENDPOINT") or "_URL" in name:
                require_encryption(name, value)
            os.environ[name] = value
        elif _FOR_LIBRARIES.fullmatch(name):
            os.environ.setdefault(name, value)
        elif not danger:
            ignored.append(name)
    _warn_ignored(path, tuple(ignored))
    return own


_warned: set[tuple[Path, tuple[str, ...]]] = set()


def _warn_ignored(path: Path, names: tuple[str, ...]) -> None:
    if names and (path, names) not in _warned:
        _warned.add((path, names))
        console.warn(
            f"`{path}`: not taken: {', '.join(names)}; set them in the environment if they are needed"
        )


def _read_dotenv(path: Path) -> dict[str, str]:
    # Without interpolation: `${AWS_SECRET_ACCESS_KEY}` would put the user's key wherever the folder wants it.
    if not path.exists():
        return {}
    values = dotenv_values(stream=io.StringIO(read_text(path)), interpolate=False)
    found = {name: value for name, value in values.items() if value is not None}
    for name, value in found.items():
        if re.search(r"\$\{\w+", value):
            raise ConfigError(
                f"`{path}` sets {name} to a value with `${{...}}`, which is not replaced there",
                hint="write the value itself, or set it in the environment",
            )
    return found


def read_text(path: Path) -> str:
    """A settings file's text: UTF-8, or UTF-16 with a byte order mark, as PowerShell writes it.

    Raises `ConfigError` naming the file when it is neither, or `InputError` when it is no regular file.
    """
    with open_regular(path, what="the settings file") as file:
        data = file.read(_LARGEST_BYTES + 1)
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    hint = f"save `{path.name}` as UTF-8"
    if len(data) > _LARGEST_BYTES:
        raise ConfigError(f"`{path}` is too large for a settings file", hint="check which file it is")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` is not {encoding[:6].upper()} text: {error.reason}", hint=hint) from None
    if "\0" in text:
        raise ConfigError(f"`{path}` is not UTF-8 text: it contains NUL characters", hint=hint)
    return text


def nested(variables: Mapping[str, str]) -> dict[str, Any]:
    """Settings from variables, nested like the file; empty ones and those of others are left out.

    Raises `ConfigError` for a name with our prefix that is no setting, with the nearest one.
    """
    known = _settings_by_variable()
    found: dict[str, Any] = {}
    # Whole sections first, then the short names: the full name of a setting wins over both.
    for name in sorted(variables, key=lambda name: ("__" in name, name not in _SHORT_NAMES)):
        place = known.get(name.upper())
        if not place and name.upper().startswith(_PREFIX):
            _report_unknown(name, known)
        elif place and variables[name]:
            value = _parsed(name, variables[name], place)
            found = merged(found, {place[0]: {place[1]: value} if len(place) > 1 else value})
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; `above` wins, table by table."""
    both = {
        key: merged(below[key], value)
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        else value
        for key, value in above.items()
    }
    return {**below, **both}


def _settings_by_variable() -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {**_SHORT_NAMES, f"{_PREFIX}OPENAI_API_KEY": ("openai_api_key",)}
    for section, model in sections().items():
        names[f"{_PREFIX}{section.upper()}"] = (section,)
        names |= {f"{_PREFIX}{section.upper()}__{key.upper()}": (section, key) for key in model.model_fields}
    return names


def _report_unknown(name: str, known: Mapping[str, object]) -> None:
    if name.upper() == ALLOW_HTTP:
        return
    by_ending = {
        full.removeprefix(_PREFIX): full for full in known
    }  # the common prefix makes all names alike
    close = nearest(name.upper().removeprefix(_PREFIX), by_ending)
    if close or "__" in name:
        suggestion = f"did you mean {by_ending[close]}?" if close else "see `furnclip.toml` for the settings"
        raise ConfigError(f"unknown setting {name} (in the environment or `.env`)", hint=suggestion)
    console.warn(f"{name} is not a setting of furnclip and is not used")


def _parsed(name: str, text: str, place: tuple[str, ...]) -> Any:
    """A variable's text as what the setting's type wants: JSON, a list with commas, or text."""
    if len(place) == 1:
        return _json(name, text) if place[0] in sections() else text
    kind = sections()[place[0]].model_fields[place[1]].annotation
    is_list = get_origin(kind) is tuple
    takes_list = is_list or any(get_origin(option) is tuple for option in get_args(kind))
    if (takes_list and text.lstrip().startswith("[")) or get_origin(kind) is dict:
        return _json(name, text)
    return [part.strip() for part in text.split(",") if part.strip()] if is_list else text


def _json(name: str, text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    raise ConfigError(
        f"{name} is not valid JSON", hint=f'write it like {name}=\'{{"key": 1}}\' or \'["a", "b"]\''
    )

"""Variables: the process environment, which is the user's, and `.env`, which is the folder's."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_TORCHRUN_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
_TORCHRUN_TEXTS = ("MASTER_ADDR", "TORCHELASTIC_RUN_ID")


def environment_variables() -> Mapping[str, str]:
    """The process environment. Other packages ask here instead of reading `os.environ`."""
    return os.environ


def without_ray_telemetry() -> None:
    """Keep Ray from reporting its use to its makers, unless the user has decided otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@dataclass(frozen=True)
class Launch:
    """This process among `count`; `ignored` says which variables were set without torchrun, if any."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    ignored: str = ""


def torchrun_launch() -> Launch:
    """What torchrun started; a single process unless all of its variables are there and fit together.

    A left-over `RANK` would make a process wait for others that were never started.
    """
    missing = [name for name in (*_TORCHRUN_NUMBERS, *_TORCHRUN_TEXTS) if not os.environ.get(name)]
    texts = {name: os.environ.get(name, "") for name in _TORCHRUN_NUMBERS}
    if not missing and all(text.isdecimal() for text in texts.values()):
        launch = Launch(int(texts["RANK"]), int(texts["WORLD_SIZE"]), int(texts["LOCAL_RANK"]))
        if launch.local_rank <= launch.rank < launch.count:
            return launch
    # schedulers set these three, and they are left over in shells
    stray = [f"{name}={texts[name]}" for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if texts[name]]
    if not stray:
        return Launch()
    reason = f"without {', '.join(missing)}" if missing else "but torchrun's variables contradict each other"
    return Launch(
        ignored=f"ignored {', '.join(stray)} {reason}: this is one process, not started by torchrun"
    )


def adopt_dotenv(folder: Path, *, trust: bool = False) -> dict[str, str]:
    """Set the libraries' variables of `folder/.env` in the process, and return furnclip's own ones.

    Call it before a library that reads its variables on import. Raises `ConfigError` for a sensitive one
    that the user has not allowed.
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
    if ignored:
        names = ", ".join(ignored)
        console.warn_once(f"`{path}`: not taken: {names}; set them in the environment if they are needed")
    return own


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    # Without interpolation: `${AWS_SECRET_ACCESS_KEY}` would put the user's key wherever the folder wants it.
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
    if len(data) > _LARGEST_BYTES:
        raise ConfigError(f"`{path}` is too large for a settings file", hint="check which file it is")
    is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
        problem = "it contains NUL characters" if "\0" in text else ""
    except UnicodeDecodeError as error:
        problem = error.reason
    if problem:
        encoding = "UTF-16" if is_utf16 else "UTF-8"
        raise ConfigError(f"`{path}` is not {encoding} text: {problem}", hint=f"save `{path.name}` as UTF-8")
    return text


def nested(variables: Mapping[str, str]) -> dict[str, Any]:
    """Settings from variables, nested like the file. Raises `ConfigError` for what is nearly a setting."""
    known: dict[str, tuple[str, ...]] = {**_SHORT_NAMES, f"{_PREFIX}OPENAI_API_KEY": ("openai_api_key",)}
    for section, model in sections().items():
        known[f"{_PREFIX}{section.upper()}"] = (section,)
        known |= {f"{_PREFIX}{section.upper()}__{key.upper()}": (section, key) for key in model.model_fields}
    found: dict[str, Any] = {}
    # Whole sections first, then the short names: the full name of a setting wins over both.
    for name in sorted(variables, key=lambda name: ("__" in name, name not in _SHORT_NAMES)):
        place = known.get(name.upper())
        if place and variables[name]:
            value = _parsed(name, variables[name], place)
            found = merged(found, {place[0]: {place[1]: value} if len(place) > 1 else value})
        elif not place and name.upper().startswith(_PREFIX) and name.upper() != ALLOW_HTTP:
            by_ending = {full.removeprefix(_PREFIX): full for full in known}  # the prefix makes all alike
            close = nearest(name.upper().removeprefix(_PREFIX), by_ending)
            if close or "__" in name:
                hint = (
                    f"did you mean {by_ending[close]}?" if close else "see `furnclip.toml` for the settings"
                )
                raise ConfigError(f"unknown setting {name} (in the environment or `.env`)", hint=hint)
            console.warn(f"{name} is not a setting of furnclip and is not used")
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; `above` wins, table by table."""
    both = dict(below)
    for key, value in above.items():
        nests = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        both[key] = merged(below[key], value) if nests else value
    return both


def _parsed(name: str, text: str, place: tuple[str, ...]) -> Any:
    """A variable's text as what the setting's type wants: JSON, a list with commas, or text."""
    kind = "dict" if place[0] in sections() else "str"
    if len(place) > 1:
        kind = str(sections()[place[0]].model_fields[place[1]].annotation)
    if "dict" in kind or ("tuple" in kind and text.lstrip().startswith("[")):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
        example = f'{name}=\'{{"key": 1}}\' or \'["a", "b"]\''
        raise ConfigError(f"{name} is not valid JSON", hint=f"write it like {example}")
    return [part.strip() for part in text.split(",") if part.strip()] if kind.startswith("tuple") else text

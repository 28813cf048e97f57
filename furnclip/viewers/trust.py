"""A viewer command that came with a folder is somebody else's program: ask before the first run.

Approvals are kept in the user's own state folder, as the hash of the settings file's place and the
command, so a changed command is asked about again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from furnclip.config import CONFIG_NAME, environment_variables
from furnclip.journal import write_json
from furnclip.viewers.template import WORDS, Setting

_VARIABLES = {"FURNCLIP_VIEWER", "FURNCLIP_ARENA__VIEWER"}


def permitted(setting: Setting, *, config_file: Path | None, ask: Callable[[str], bool] | None) -> Setting:
    """`setting` if it may be used, else `auto`.

    For a command read from `config_file` (None: the current folder's), which may have come with a
    download; one set in the environment needs no permission, nor does a flag, which is not passed
    here. `ask` puts a question to the user; None when there is nobody.
    """
    if setting in WORDS or _VARIABLES.intersection(environment_variables()):
        return setting
    config_file = config_file or Path.cwd() / CONFIG_NAME
    key = _key(setting, config_file)
    if key in _approved():
        return setting
    shown = setting if isinstance(setting, str) else " ".join(setting)
    if ask is None or not ask(f"`{config_file}` wants to show pictures with `{shown}`; run that program?"):
        return "auto"
    write_json(_memory(), sorted({*_approved(), key}))
    return setting


def _key(setting: Setting, config_file: Path) -> str:
    arguments = setting if isinstance(setting, str) else list(setting)
    return hashlib.sha256(json.dumps([str(config_file.resolve()), arguments]).encode()).hexdigest()


def _approved() -> set[str]:
    try:
        return set(json.loads(_memory().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return set()  # no approvals yet, or a damaged file: ask again


def _memory() -> Path:
    state = environment_variables().get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "furnclip" / "viewers.json"

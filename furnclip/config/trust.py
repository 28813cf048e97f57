"""Settings of a folder that can do harm when the folder came from somebody else: one rule for all of them.

Standing in `furnclip.toml` or `.env` a setting of `SETTINGS` or `_VARIABLES` needs the user's permission:
asked for once on a terminal and remembered in the user's own state folder for this folder and this exact
value; without a terminal it is refused. Flags and the process environment are the user's own.

Plain http to another machine shows the key to everybody on the way: the user has to name that machine in
FURNCLIP_ALLOW_HTTP, which counts only in the process environment.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from furnclip import console
from furnclip.errors import ConfigError
from furnclip.journal import open_regular, write_json

ALLOW_HTTP = "FURNCLIP_ALLOW_HTTP"
VIEWER_WORDS = ("auto", "none", "builtin")

_PROGRAM = "starts that program"
_CREDENTIALS = "decides which credentials are used and can start a program"
_ADDRESS = "sends your key, or requests signed with it, to that address"
_ROUTE = "sends every request, with your keys, through that address"
_CERTIFICATES = "decides which servers get your keys"
_INSIDE = "lets the addresses of the catalogue lead to servers inside your own network"
SETTINGS = {
    "arena.viewer": _PROGRAM,
    "clean.base_url": _ADDRESS,
    "storage.endpoint_url": _ADDRESS,
    "fetch.allow_private": _INSIDE,
}
_VARIABLES = {
    r"AWS_ENDPOINT_URL(_\w+)?|HF_ENDPOINT|WANDB_BASE_URL|RAY_ADDRESS": _ADDRESS,
    r"(HTTPS?|ALL)_PROXY": _ROUTE,
    r"SSL_CERT_(FILE|DIR)|(AWS|REQUESTS|CURL)_CA_BUNDLE": _CERTIFICATES,
    r"AWS_((DEFAULT_)?PROFILE|CONFIG_FILE|SHARED_CREDENTIALS_FILE)": _CREDENTIALS,
    r"AWS_(ROLE|WEB_IDENTITY|CONTAINER)_\w+": _CREDENTIALS,
}
_VENDORS = {
    "clean.base_url": "api.openai.com",
    "HF_ENDPOINT": "huggingface.co",
    "WANDB_BASE_URL": "api.wandb.ai",
}
# Clients do not agree on where the host of an address with spaces or backslashes is.
_UNAMBIGUOUS = re.compile(r"[!-\[\]-~]+")


@dataclass(frozen=True)
class FolderSetting:
    """A sensitive setting as it stands in a file of the folder; `danger` says what it does."""

    name: str
    value: str | tuple[str, ...]
    file: Path
    danger: str

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else shlex.join(self.value)
        return f"`{self.file}` sets `{self.name}` to `{value}`, which {self.danger}"

    def is_harmless(self) -> bool:
        """An empty value, a built-in viewer, an address of this machine or of the vendor."""
        if not self.value or (self.name == "arena.viewer" and self.value in VIEWER_WORDS):
            return True
        if self.danger not in (_ADDRESS, _ROUTE) or not isinstance(self.value, str):
            return False
        address, vendor = _split(self.value), _VENDORS.get(self.name)
        return is_local(self.value) or (address.scheme, address.netloc) == ("https", vendor)

    def key(self) -> str:
        """A hash of folder, name and exact value, and of the folder's own files that the value names."""
        folder = self.file.parent.resolve()
        words = {self.value} if isinstance(self.value, str) else set(self.value)
        with suppress(ValueError):  # no command line
            words |= {part for word in words for part in shlex.split(word)}
        contents = []
        for path in sorted({folder / word for word in words}):
            with suppress(OSError, ValueError):
                if path.resolve().is_relative_to(folder) and path.is_file():
                    with open_regular(path, what="the file") as file:
                        contents.append(hashlib.sha256(file.read(1 << 24)).hexdigest())
        return hashlib.sha256(json.dumps([str(folder), self.name, self.value, contents]).encode()).hexdigest()


def danger_of(variable: str) -> str | None:
    """What a variable of `.env` can do that the user has to permit; None for the others."""
    name = variable.upper()
    return next((danger for pattern, danger in _VARIABLES.items() if re.fullmatch(pattern, name)), None)


def require_permission(found: FolderSetting, *, trust: bool = False) -> None:
    """Raise `ConfigError` unless the user allows this setting, allowed it before or does so by `trust`."""
    if found.is_harmless():
        return
    key, record = found.key(), _permissions_file()
    permitted = set()
    # nothing allowed yet, or a damaged file: ask again
    with suppress(OSError, ValueError, TypeError, RecursionError):
        permitted = {str(known) for known in json.loads(record.read_bytes())} if record else set()
    if key in permitted:
        return
    if trust:
        console.note(f"allowed: {found}")
    elif not console.confirm(f"{found}. Allow it?"):
        variable = found.name if found.name.isupper() else f"FURNCLIP_{found.name.upper().replace('.', '__')}"
        raise ConfigError(
            f"{found}; you have not allowed it",
            hint=f"if you trust this folder, run `furnclip doctor --trust` in it once, or set {variable} "
            "yourself in the environment",
        )
    if record is None:
        console.note("not remembered: there is no home folder")
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(record, sorted({*permitted, key}))
        record.chmod(0o600)
    except OSError as error:
        console.note(f"not remembered: `{record}`: {error.strerror}")


def _permissions_file() -> Path | None:
    """The file of permissions, in the user's own state folder; None where the user has none."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # the standard says to ignore it then; it would lie in the folder
        with suppress(RuntimeError):
            state = Path.home() / ".local" / "state"
    return state / "furnclip" / "trusted.json" if state.is_absolute() else None


def require_encryption(name: str, address: str) -> None:
    """Raises `ConfigError` for plain http to another machine that the user has not named."""
    split = _split(address)
    if split.scheme != "http" or is_local(address):
        return
    host = split.hostname or ""
    if host not in re.split(r"[\s,]+", os.environ.get(ALLOW_HTTP, "").lower()):
        raise ConfigError(
            f"`{name}` is `{address}`: keys and requests would cross the network unencrypted",
            hint=f"use https, or set {ALLOW_HTTP}={host} in your environment",
        )


def is_local(address: str) -> bool:
    """Whether an address leads to this machine itself."""
    host = _split(address).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _split(address: str) -> SplitResult:
    """Its parts, all empty where it is not an address that every client reads alike."""
    with suppress(ValueError):
        if _UNAMBIGUOUS.fullmatch(address):
            return urlsplit(address)
    return urlsplit("")

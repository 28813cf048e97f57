"""`furnclip doctor`: is this machine ready? One line for each thing that the other commands will need.

In: the settings. Out: a list of `Check`; nothing is written, unless the bucket is to be probed. The checks
run concurrently, with a common timeout of `LIMIT_S` seconds.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from furnclip.config import Config
from furnclip.console import redact
from furnclip.errors import HOW_TO_BEGIN, FurnclipError, first_line
from furnclip.parallel import cores

LIMIT_S = 30.0  # a slow machine needs half of it to import everything
NETWORK_S = 5.0
_ENOUGH_BYTES = 5e9
_LITTLE_BYTES = 5e8
_WARN_DAYS = 60
_MOST_ROWS = 20_000
_ENOUGH_SHARE = 0.9


@dataclass(frozen=True)
class Check:
    """What was found about one thing; `hint` says what to do, unless it is `ok`."""

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""


class Caution(FurnclipError):
    """Something that most commands do without: a `warn` in the list."""


def examine(
    config: Config, *, ask_provider: Callable[[], tuple[date | None, str]], write_probe: bool = False
) -> list[Check]:
    """All checks, in the order of the pipeline.

    `ask_provider`: the cleaning model's shutdown date, if any, and its successor; only called with a key.
    `write_probe`: put a small object into the bucket, read it and delete it again.
    """
    checks: dict[str, Callable[[], str]] = {
        "python": lambda: f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": check_torch,
        "device": partial(check_device, config.model.device),
        "base model": partial(check_base_model, config),
        "catalogue": partial(check_catalogue, config),
        "cleaning": partial(check_cleaning, config, ask_provider),
        "bucket": partial(check_bucket, config, write_probe=write_probe),
        "disk": partial(check_disk, config.paths.work),
        "viewer": partial(check_viewer, config.arena.viewer),
    }
    late = f"no answer within {LIMIT_S:.0f} s"
    found = {name: Check(name, "fail", late, "check the network") for name in checks}

    def run(name: str) -> None:
        found[name] = outcome(name, checks[name])

    threads = [Thread(target=run, args=(name,), daemon=True) for name in checks]
    for thread in threads:
        thread.start()
    deadline = monotonic() + LIMIT_S
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    return list(found.values())  # what comes later is too late


def outcome(name: str, check: Callable[[], str]) -> Check:
    """`ok` with what `check` returns, or `warn` or `fail` with what it raises."""
    try:
        return Check(name, "ok", redact(check()))
    except FurnclipError as error:
        status: Literal["warn", "fail"] = "warn" if isinstance(error, Caution) else "fail"
        return Check(name, status, redact(error.message), redact(error.hint))
    except Exception as error:  # a broken installation can fail in any way
        hint = "install furnclip again: `pip install --force-reinstall furnclip`"
        return Check(name, "fail", redact(first_line(error)), hint)


def check_torch() -> str:
    """Whether torch can be imported; a wrong CUDA build cannot."""
    # Imported here and below, not at the top: a broken one has to be reported, not to end the report.
    import torch

    libraries = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft"))
    return f"{torch.__version__}, {libraries}"


def check_device(wanted: str) -> str:
    """Where training and embedding will run."""
    import torch

    from furnclip.model.precision import choose_device

    device = choose_device(wanted)
    if device.type != "cuda":
        return f"{device.type}, {cores()} cores, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    return f"{device}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def check_base_model(config: Config) -> str:
    """Whether the base model loads from its folder, is in the hub's cache or can be downloaded."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from furnclip.model.light import BUNDLED
    from furnclip.model.loading import load_clip

    name, revision = config.model.name, config.model.revision
    if name == BUNDLED or Path(name).expanduser().is_dir():
        clip = load_clip(name, config.model)
        return f"{name} loads: {clip.image_px} px, {clip.dimension} dimensions"
    elsewhere = "download it once where there is a network, and give its folder to `model.name`"
    files = ("model.safetensors", "pytorch_model.bin")
    try:
        cached = [try_to_load_from_cache(name, file, revision=revision) for file in files]
    except HFValidationError:
        hint = "give a folder that exists, or an id like `openai/clip-vit-base-patch32`"
        raise FurnclipError(f"`{name}` is neither a folder nor a hub id", hint=hint) from None
    if any(isinstance(path, str) for path in cached):
        return f"{name} is in the cache"
    if constants.HF_HUB_OFFLINE:
        raise FurnclipError(f"{name} is not in the cache, and HF_HUB_OFFLINE is set", hint=elsewhere)
    head = Request(hf_hub_url(name, "config.json", revision=revision), method="HEAD")
    try:
        urlopen(head, timeout=NETWORK_S).close()
    except HTTPError as error:
        hint = "correct `model.name` and `model.revision`; a private model has to be downloaded first"
        raise FurnclipError(f"the hub does not offer {name} (HTTP {error.code})", hint=hint) from None
    except OSError:
        message = f"{name} is not in the cache, and the hub cannot be reached"
        raise FurnclipError(message, hint=elsewhere) from None
    return f"{name} can be downloaded"


def check_catalogue(config: Config) -> str:
    """What of the catalogue can be used: rows, products, images; of a long one its first rows count."""
    from furnclip.survey import survey

    products = config.paths.products
    if not products.is_file():
        raise Caution(f"there is no catalogue `{products}`", hint=HOW_TO_BEGIN)
    found = survey(config, most_rows=_MOST_ROWS)
    start = f"the first {_MOST_ROWS:,} of " if found.products == _MOST_ROWS else ""
    message = f"{start}{products.name}: {found.text()}"
    if found.is_hopeless and not found.to_fetch:  # that is the next command
        raise FurnclipError(message, hint=found.advice or "export the catalogue again")
    if found.usable < _ENOUGH_SHARE * found.products:
        raise Caution(message, hint=found.advice)
    return message


def check_cleaning(config: Config, ask_provider: Callable[[], tuple[date | None, str]]) -> str:
    """The key for the cleaning backend, and whether its model will be shut down soon."""
    backend, model = config.clean.backend, config.clean.model
    if backend != "openai":
        return f"backend `{backend}` needs no key"
    if not config.openai_api_key.get_secret_value():
        hint = "put it into .env, or clean offline with `furnclip clean run --backend local`"
        raise Caution("OPENAI_API_KEY is not set", hint=hint)
    shutdown, successor = ask_provider()
    if shutdown is None:
        return f"key accepted, {model} has no shutdown date"
    left_days = (shutdown - date.today()).days
    hint = "set `clean.model`" + (f" to `{successor}`" if successor else "")
    if left_days <= 0:
        raise FurnclipError(f"{model} was shut down on {shutdown}", hint=hint)
    if left_days < _WARN_DAYS:
        raise Caution(f"key accepted, {model} is shut down on {shutdown}", hint=hint)
    return f"key accepted, {model} is shut down on {shutdown}"


def check_bucket(config: Config, *, write_probe: bool = False) -> str:
    """Whether the bucket exists and the credentials may list it and, with `write_probe`, write to it."""
    storage = config.storage
    if not storage.bucket:
        return "none is set; everything stays on this machine"
    from furnclip.storage import S3Manager

    patience = storage.model_copy(update={"timeout_s": min(storage.timeout_s, NETWORK_S)})
    with S3Manager.from_config(patience) as manager:
        manager.check()
        if not write_probe:
            return f"s3://{storage.bucket} can be listed; reading and writing were not tried (--write-probe)"
        manager.probe(storage.prefix)
    where = f"s3://{storage.bucket}/{storage.prefix}".rstrip("/")
    return f"{where} can be listed, written, read and deleted from"


def check_disk(work: Path) -> str:
    """Free space for the work folder, and the permission to write there."""
    folder = next(path for path in (work, *work.parents) if path.exists())
    free_bytes = shutil.disk_usage(folder).free
    message = f"{free_bytes / 1e9:,.1f} GB free for {work}"
    if not os.access(folder, os.W_OK):
        raise FurnclipError(f"{folder} cannot be written", hint="set `paths.work` to another folder")
    if free_bytes < _ENOUGH_BYTES:
        problem = FurnclipError if free_bytes < _LITTLE_BYTES else Caution
        raise problem(message, hint="free some space, or set `paths.work` to another disk")
    return message


def check_viewer(setting: str | tuple[str, ...]) -> str:
    """How images will be shown in this terminal."""
    from furnclip.viewers import detect

    plan = detect(setting)
    if not plan.candidates:
        hint = "images are named instead of shown; use a terminal with colors, or set `arena.viewer`"
        raise Caution(f"none: {plan.reason}", hint=hint)
    order = ", then ".join(candidate.name for candidate in plan.candidates)
    return f"{order} ({plan.terminal}: {plan.reason})"


def check_terminal() -> str:
    """What the terminal says it can draw, and the setting that makes use of it."""
    from furnclip.viewers import TerminalEnvironment, detect, query_terminal

    reply = query_terminal()
    if reply is None:
        raise Caution("it did not answer", hint="`arena.viewer` names a viewer that works here")
    here = TerminalEnvironment.here()
    expected, better = detect("auto", here), detect("auto", replace(here, graphics=reply.graphics))
    message = f"{reply.name or 'no name'}, draws {reply.graphics}"
    if expected.graphics in (reply.graphics, "none"):
        return message
    command = better.candidates[0].arguments
    hint = f"set `arena.viewer` to {json.dumps(command)}" if command else "install chafa to make use of it"
    raise Caution(f"{message}, not {expected.graphics}", hint=hint)

"""The commented `furnclip.toml` and `.env.example` that `furnclip init` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from furnclip.config.loading import CONFIG_NAME
from furnclip.config.sections import sections
from furnclip.errors import ConfigError
from furnclip.journal import write_text


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

"""What every command shares: options, settings from flags, and errors as two lines.

Only typer is imported here; everything heavier waits until a command runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from furnclip import console
from furnclip.cli.ending import report, written_folders
from furnclip.cli.flags import FLAGS
from furnclip.errors import FurnclipError

if TYPE_CHECKING:
    from furnclip.config import Config

_LEAST_ADDRESS_SPACE_MB = 1536

# `--s3_bucket` is the same as `--s3-bucket`.
CONTEXT_SETTINGS = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}

Flags = dict[str, dict[str, Any]]


def _prepare_environment(context: typer.Context, path: Path | None) -> Path | None:
    if not context.resilient_parsing:  # that would be shell completion
        from furnclip.config import adopt_dotenv, settings_file

        adopt_dotenv(settings_file(path).parent, trust=context.params.get("trust", False))
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="settings file; without it ./furnclip.toml, if there is one",
        resolve_path=True,
        # before the command's own imports: libraries read their variables when they are imported
        callback=_prepare_environment,
    ),
]
VectorsOfRun = Annotated[
    str | None, typer.Option("--run", help="search the vectors of this run; default: those embedded")
]
VectorsOfModel = Annotated[str | None, typer.Option("--model", help="search the vectors of this base model")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout, nothing else")]


def sets(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of these settings: what was given arrives in its parameter `flags`.

    `@sets("train.epochs")` makes `--epochs 3` arrive as `{"train": {"epochs": 3}}`, ready for `settings`.
    """
    parameters = {}
    for name in names:
        kind, declared, meaning = FLAGS[name]
        option = typer.Option(*declared.split(), help=meaning.replace("[", r"\["))  # Rich: `[` is a style
        parameters[name] = inspect.Parameter(
            declared.split()[-1].lstrip("-").replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, option],
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def with_flags(**given: Any) -> None:
            flags: Flags = {}
            for name, parameter in parameters.items():
                section, _, key = name.partition(".")
                if (value := given.pop(parameter.name)) is not None:
                    flags.setdefault(section, {})[key] = value
            command(flags=flags, **given)

        together: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            together += parameters.values() if parameter.name == "flags" else [parameter]
        with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in together}
        vars(with_flags)["__signature__"] = inspect.Signature(together)
        return with_flags

    return decorate


def settings(config: Path | None, flags: Flags | None = None, *, trust: bool = False) -> Config:
    """The settings; `flags` are those that were given, nested like the file."""
    from furnclip.config import load_config

    chosen = load_config(config, flags, trust=trust)
    written_folders.append(chosen.paths.work)
    return chosen


def check_address_space() -> None:
    """Refuse a limit (`ulimit -v`) under which torch hangs or aborts while it is imported, without a word."""
    try:
        import resource  # Unix only
    except ImportError:
        return
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit_bytes != resource.RLIM_INFINITY and limit_bytes < _LEAST_ADDRESS_SPACE_MB * 2**20:
        raise FurnclipError(
            f"the memory limit of {limit_bytes >> 20:,} MB is too low for torch, which needs "
            f"{_LEAST_ADDRESS_SPACE_MB:,} MB of address space",
            hint="raise it with `ulimit -v unlimited`",
        )


def mention_raw_titles(options: Config) -> None:
    """Say after the work that it was done on raw titles, if it was."""
    if not options.paths.cleaned.is_file():
        console.warn(
            f"used the raw titles of {options.paths.products}; `furnclip clean run` makes better ones"
        )


def mention_uncleaned(rows: int) -> None:
    """Say that rows of the catalogue were left out because they are not cleaned, if there are any."""
    if rows:
        console.warn(
            f"{rows} rows of the catalogue are not cleaned, and therefore not here: they were added since, "
            "or lie beyond `--limit`; `furnclip clean run` cleans them"
        )


class FurnclipGroup(TyperGroup):
    """Turns errors into `error:` and `hint:` on stderr and the right exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, SystemExit):
            raise
        except BaseException as error:
            raise typer.Exit(report(error)) from None

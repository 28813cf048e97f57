"""What every command shares: options and settings from flags. Only typer is imported."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnclip import console
from furnclip.cli.ending import full_disk
from furnclip.errors import HOW_TO_BEGIN, FurnclipError, MissingStageError

if TYPE_CHECKING:
    from furnclip.config import Config

_LEAST_ADDRESS_SPACE_MB = {"torch": 1536, "LanceDB": 768}
# Type, names and help of settings that are flags, by `python -m tests.bench.tools.make_flags`.
_FLAGS = json.loads(Path(__file__).with_name("flags.json").read_text(encoding="utf-8"))
_TYPES = {"bool": bool, "int": int, "float": float, "str": str}

# `--s3_bucket` is the same as `--s3-bucket`.
CONTEXT_SETTINGS = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}


def _prepare_environment(context: typer.Context, path: Path | None) -> Path | None:
    if not context.resilient_parsing:  # that would be shell completion
        from furnclip.config import adopt_dotenv, settings_file

        adopt_dotenv(settings_file(path).parent, trust=context.params.get("trust", False))
    return path


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


_CONFIG_OPTION = typer.Option(
    "--config",
    help="settings file; without it ./furnclip.toml, if there is one",
    resolve_path=True,
    # before the command's own imports: libraries read their variables when they are imported
    callback=_prepare_environment,
)
_JSON_OPTION = typer.Option("--json", help="print one JSON object on stdout, nothing else")
_CONFIG = _parameter("config", Annotated[Path | None, _CONFIG_OPTION], None)
_JSON = _parameter("as_json", Annotated[bool, _JSON_OPTION], False)
VectorsOfRun = Annotated[
    str | None, typer.Option("--run", help="search the vectors of this run; default: those embedded")
]
VectorsOfModel = Annotated[str | None, typer.Option("--model", help="search the vectors of this base model")]


@dataclass
class Call:
    """What was typed besides a command's own options."""

    config: Path | None
    flags: dict[str, dict[str, Any]]  # settings that were given, nested like the file
    as_json: bool
    written: list[Path] = field(default_factory=list)  # folders that the command writes to
    has_begun: bool = True  # off where there is neither a catalogue, nor anything made of one, nor a bucket

    def settings(self, *, trust: bool = False) -> Config:
        """The settings of this call, checked."""
        from furnclip.config import load_config

        chosen = load_config(self.config, self.flags, trust=trust)
        paths = chosen.paths
        here = any(path.exists() for path in (paths.products, paths.shards, paths.embeddings))
        self.has_begun = here or bool(chosen.storage.bucket)
        self.written.extend(path for path in (paths.work, paths.images) if isinstance(path, Path))
        return chosen

    def emit(self, payload: Mapping[str, Any], human: Callable[[], None]) -> None:
        """Print the result: as JSON, or as `human` does."""
        if self.as_json:
            console.print_json(payload)
        else:
            human()


def takes(*names: str, config: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a command with the options of these settings, `--config` and `--json`.

    `@takes("train.epochs")`: `--epochs 3` arrives as `{"train": {"epochs": 3}}` in the `flags` of its `Call`.
    """
    options = {}
    for name in names:
        kind, declared, meaning = _FLAGS[name]
        option = typer.Option(*declared.split(), help=meaning.replace("[", r"\["))  # Rich: `[` is a style
        key = declared.split()[-1].lstrip("-").replace("-", "_")
        options[name] = _parameter(key, Annotated[_TYPES[kind] | None, option], None)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(*, config: Path | None = None, as_json: bool, **given: Any) -> None:
            flags: dict[str, dict[str, Any]] = {}
            for name, parameter in options.items():
                section, _, key = name.partition(".")
                if (value := given.pop(parameter.name)) is not None:
                    flags.setdefault(section, {})[key] = value
            call = Call(config, flags, as_json)
            try:
                function(call, **given)
            except MissingStageError as error:
                if not call.has_begun:
                    error.hint = HOW_TO_BEGIN
                raise
            except Exception as error:
                if told := full_disk(error, call.written):
                    raise told from None
                raise

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        together = [*options.values(), *own, *([_CONFIG] if config else []), _JSON]
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in together}
        vars(command)["__signature__"] = inspect.Signature(together)
        return command

    return decorate


def check_address_space(library: str = "torch") -> None:
    """Refuse a limit (`ulimit -v`) under which importing a library hangs or aborts without a word."""
    try:
        import resource  # Unix only
    except ImportError:
        return
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    least_mb = _LEAST_ADDRESS_SPACE_MB[library]
    if limit_bytes != resource.RLIM_INFINITY and limit_bytes < least_mb * 2**20:
        raise FurnclipError(
            f"the memory limit of {limit_bytes >> 20:,} MB is too low for {library}, which needs "
            f"{least_mb:,} MB of address space",
            hint="raise it with `ulimit -v unlimited`",
        )


def check_cleaned(options: Config) -> None:
    """Refuse a catalogue whose cleaning has begun and gave nothing, or has not finished."""
    if options.paths.clean.is_dir():
        from furnclip.clean.workspace import check_finished  # a quarter of a second to import

        check_finished(options.paths)


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

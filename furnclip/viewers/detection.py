"""Which viewers to try here, in which order, and why; the user's own viewer command; and desktop windows.

Environment variables lie: a terminal started from another inherits its variables, and tmux keeps
those of whoever started its server. So multiplexers and editors come first, and of the rest only variables
that every terminal sets afresh are read; without one, symbols, which look right everywhere.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from string import Formatter

from furnclip.config import VIEWER_WORDS, environment_variables
from furnclip.errors import ConfigError, nearest

ViewerSetting = str | Sequence[str]
_EARLY_EXIT_S = 0.3  # within which a desktop program that cannot show the image ends
_IMAGE_PLACEHOLDERS = ("path", "original", "uri", "winpath")
_PLACEHOLDERS = (
    *(*_IMAGE_PLACEHOLDERS, "cols", "rows", "left", "top"),
    *("pxw", "pxh", "tcols", "trows", "tpxw", "tpxh"),
)


@dataclass(frozen=True)
class Environment:
    """Everything that detection looks at; tests pass their own."""

    variables: Mapping[str, str]
    which: Callable[[str], str | None]
    isatty: bool
    platform: str
    graphics: str = ""
    """what the terminal itself replied when it was queried, which takes precedence over `variables`"""

    @classmethod
    def here(cls) -> Environment:
        """This process, its terminal and the programs on its PATH."""
        return cls(
            variables=environment_variables(),
            which=shutil.which,
            isatty=sys.stdout.isatty() or sys.stderr.isatty(),
            platform=sys.platform,
        )


@dataclass(frozen=True)
class Candidate:
    """One viewer: a command with placeholders; without arguments, the built-in half blocks."""

    name: str
    arguments: tuple[str, ...] = ()
    needs_place: bool = False
    """its output positions itself on the screen, so it cannot be drawn at the cursor"""


BUILTIN = Candidate("half blocks")


@dataclass(frozen=True)
class Plan:
    """What to try, best first; no candidates means that only the path is printed."""

    terminal: str
    reason: str
    graphics: str
    colors: str
    candidates: tuple[Candidate, ...] = ()


# Terminal, graphics, variable, pattern; the first that matches wins.
_TERMINALS = (
    ("zellij", "symbols", "ZELLIJ", "*"),
    ("screen", "symbols", "STY", "?*"),
    ("tmux", "symbols", "TMUX", "?*"),
    ("tmux", "symbols", "TERM_PROGRAM", "tmux"),
    ("tmux", "symbols", "TERM", "tmux*"),
    ("tmux or screen", "symbols", "TERM", "screen*"),
    ("Neovim", "symbols", "NVIM", "?*"),
    ("Vim", "symbols", "VIM_TERMINAL", "?*"),
    ("Emacs", "symbols", "INSIDE_EMACS", "?*"),
    ("VS Code", "symbols", "TERM_PROGRAM", "vscode"),
    ("WezTerm", "iterm", "TERM_PROGRAM", "WezTerm"),
    ("iTerm2", "iterm", "TERM_PROGRAM", "iTerm.app"),
    ("ghostty", "kitty", "TERM_PROGRAM", "ghostty"),
    ("Warp", "kitty", "TERM_PROGRAM", "WarpTerminal"),
    ("mintty", "sixels", "TERM_PROGRAM", "mintty"),
    ("rio", "sixels", "TERM_PROGRAM", "rio"),
    ("kitty", "kitty", "TERM", "xterm-kitty"),
    ("ghostty", "kitty", "TERM", "xterm-ghostty"),
    ("foot", "sixels", "TERM", "foot*"),
    ("mlterm", "sixels", "TERM", "mlterm*"),
    ("contour", "sixels", "TERM", "contour*"),
    ("Windows Terminal", "symbols", "WT_SESSION", "?*"),
    # Konsole draws sixels from 22.04 on; its version is six digits
    ("Konsole", "sixels", "KONSOLE_VERSION", "22[01][4-9]*"),
    ("Konsole", "sixels", "KONSOLE_VERSION", "2[3-9]*"),
    ("Konsole", "symbols", "KONSOLE_VERSION", "?*"),
    # sshd passes LC_*: the one graphics signal that survives a plain ssh
    ("iTerm2", "iterm", "LC_TERMINAL", "iTerm2"),
)
_BOX = "{cols}x{rows}"
# With stdin, transfer mode, place and window size given, icat does not read the terminal.
_ICAT = (
    *("kitten", "icat", "--stdin=no", "--transfer-mode=stream", "--place={cols}x{rows}@{left}x{top}"),
    *("--loop=0", "--use-window-size={tcols},{trows},{tpxw},{tpxh}", "{path}"),
)


def detect(setting: ViewerSetting = "auto", environment: Environment | None = None) -> Plan:
    """The plan for a viewer setting in this environment (None: of this process).

    A command of the user's own is followed by half blocks and nothing else: its failure must be
    visible. Raises `ConfigError` for a command that cannot work.
    """
    here = environment or Environment.here()
    terminal, graphics, reason = _terminal(here.variables)
    if here.graphics:
        graphics, reason = here.graphics, "its own reply"
    colors = "truecolor" if here.variables.get("COLORTERM") in ("truecolor", "24bit") else "256"
    if here.variables.get("NO_COLOR"):
        colors = "none"
    if setting == "none":
        return Plan(terminal, "switched off by `none`", "none", colors)
    if setting not in VIEWER_WORDS:
        command = parse_template(setting)
        own = Candidate(command[0].rsplit("/", 1)[-1], command)
        return Plan(terminal, "set to your own command", "yours", colors, (own, BUILTIN))
    if unable := _unable(here):
        return Plan(terminal, unable, "none", colors)
    if setting == "builtin":
        return Plan(terminal, "set to `builtin`", "symbols", colors, (BUILTIN,))
    found = (each for each in _choices(terminal, graphics, colors) if here.which(each.arguments[0]))
    return Plan(terminal, reason, graphics, colors, (*found, BUILTIN))


def _terminal(variables: Mapping[str, str]) -> tuple[str, str, str]:
    """Its name, the graphics that it draws, and how that is known."""
    for name, graphics, variable, pattern in _TERMINALS:
        value = variables.get(variable)
        if value is not None and fnmatchcase(value, pattern):
            is_presence = pattern in ("*", "?*")
            return name, graphics, f"{variable} is set" if is_presence else f"{variable}={value}"
    return "unknown terminal", "symbols", f"TERM={variables.get('TERM', '')}"


def _unable(here: Environment) -> str:
    """Why no image can be shown, or empty."""
    term = here.variables.get("TERM", "")
    if not here.isatty:
        return "the output is not a terminal"
    if term in ("", "dumb") and here.platform != "win32":
        return f"TERM is `{term}`"
    return next((f"{name} is set" for name in ("CI", "NO_COLOR") if here.variables.get(name)), "")


def _choices(terminal: str, graphics: str, colors: str) -> Iterator[Candidate]:
    """Every viewer worth trying here, best first, installed or not."""
    if terminal in ("kitty", "ghostty"):
        yield Candidate("kitten icat", _ICAT, needs_place=True)
    if terminal == "WezTerm":
        wezterm = ("wezterm", "imgcat", "--width={cols}", "--height={rows}", "{path}")
        yield Candidate("wezterm imgcat", wezterm)
    palette = ("--colors", "full" if colors == "truecolor" else "256") if graphics == "symbols" else ()
    chafa = ("chafa", "--format", graphics, "--animate", "off", *palette, "--size", _BOX, "{path}")
    yield Candidate(f"chafa ({graphics})", chafa)
    if graphics == "iterm":
        yield Candidate("imgcat", ("imgcat", "-W", "{cols}", "-H", "{rows}", "-r", "{path}"))
    yield Candidate("timg", ("timg", "-ph", f"-g{_BOX}", "--frames=1", "{path}"))
    # given both a width and a height, viu ignores the image's aspect ratio
    yield Candidate("viu", ("viu", "-s", "-1", "-b", "-w", "{cols}", "{path}"))


def desktop_command(environment: Environment | None = None) -> tuple[str, ...]:
    """The command that opens an image in a window here, to which the path is added; empty: none."""
    here = environment or Environment.here()
    variables = here.variables
    has_display = bool(variables.get("DISPLAY") or variables.get("WAYLAND_DISPLAY"))
    is_remote = bool(variables.get("SSH_CONNECTION") or variables.get("SSH_TTY"))
    if variables.get("CI") or (is_remote and not has_display):
        return ()
    if here.platform == "darwin":
        return ("open",)
    is_wsl = bool(variables.get("WSL_DISTRO_NAME") or variables.get("WSL_INTEROP"))
    tools = ("wslview",) if is_wsl else ("xdg-open", "feh", "imv") if has_display else ()
    return next(((tool,) for tool in tools if here.which(tool)), ())


def open_on_desktop(image: Path, command: Sequence[str] | None = None) -> str:
    """Start a desktop program (None: the one found here) that outlives us; the message for the user."""
    command = desktop_command() if command is None else command
    if not command:
        return "there is no desktop to open a window on"
    null = subprocess.DEVNULL
    try:
        window = subprocess.Popen(
            [*command, str(image.absolute())], stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        if window.wait(_EARLY_EXIT_S) == 0:
            return f"opened with {command[0]}"
    except OSError:
        pass
    except subprocess.TimeoutExpired:
        window.returncode = 0  # keeps Python from warning about a child without `wait`
        return f"opened with {command[0]}"
    return f"{command[0]} could not open the image"


def parse_template(setting: ViewerSetting) -> tuple[str, ...]:
    """The arguments of the user's own viewer command; raises `ConfigError` when it cannot work."""
    arguments: tuple[str, ...] = ()
    used: set[str] = set()
    problem = "is empty"
    try:
        arguments = tuple(shlex.split(setting) if isinstance(setting, str) else setting)
        used = placeholders(*arguments)
    except ValueError as error:
        arguments, problem = (), f"cannot be split: {str(error).lower()}"
    if unknown := sorted(used.difference(_PLACEHOLDERS)):
        close = nearest(unknown[0], _PLACEHOLDERS)
        known = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
        raise ConfigError(
            f"the viewer's `{{{unknown[0]}}}` is not a placeholder",
            hint=f"did you mean `{{{close}}}`?" if close else f"known here: {known}",
        )
    if arguments and placeholders(arguments[0]):
        problem = "starts with a placeholder instead of a program"
    elif arguments and used.isdisjoint(_IMAGE_PLACEHOLDERS):
        problem = "does not contain {path}"
    elif {"|", ";", ">", "&&"}.intersection(arguments):
        problem = "needs a shell, and none is used"
    elif arguments:
        return arguments
    raise ConfigError(
        f"the viewer `{setting if isinstance(setting, str) else list(setting)}` {problem}",
        hint='use `auto`, `none`, `builtin` or a command like `["chafa", "--size={cols}x{rows}", "{path}"]`',
    )


def placeholders(*arguments: str) -> set[str]:
    """What stands in braces: a name; with a conversion or a format it is an unknown one."""
    fields = [field for argument in arguments for field in Formatter().parse(argument)]
    return {
        name + (f"!{conversion}" if conversion else "") + (f":{layout}" if layout else "")
        for _, name, layout, conversion in fields
        if name is not None
    }


def fill(arguments: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """The arguments with placeholders replaced; inserted text is never split or scanned again."""
    return [argument.format_map(values) for argument in arguments]

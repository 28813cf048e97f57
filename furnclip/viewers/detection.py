"""Which viewers to try here, in which order, and why; the user's own viewer command; and desktop windows.

Environment variables lie: a terminal started from another inherits its variables. So in `terminals.csv`
multiplexers and editors come first, and of the rest only variables that every terminal sets afresh are read;
without one, symbols, which look right everywhere. `query_terminal` asks the terminal itself, which is truer.
"""

from __future__ import annotations

import csv
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from furnclip.config import VIEWER_WORDS, environment_variables
from furnclip.errors import ConfigError, nearest

if sys.platform != "win32":
    import termios
    import tty

ViewerSetting = str | Sequence[str]
_EARLY_EXIT_S = 0.3  # within which a desktop program that cannot show the image ends
_PLACEHOLDERS = (
    *("path", "original", "uri", "winpath"),  # the image; the others are sizes and places
    *("cols", "rows", "left", "top", "pxw", "pxh", "tcols", "trows", "tpxw", "tpxh"),
)


@dataclass(frozen=True)
class TerminalEnvironment:
    """Everything that detection looks at; tests pass their own."""

    variables: Mapping[str, str]
    which: Callable[[str], str | None]
    isatty: bool
    platform: str
    graphics: str = ""  # the terminal's own reply, which takes precedence over `variables`

    @classmethod
    def here(cls) -> TerminalEnvironment:
        """This process, its terminal and the programs on its PATH."""
        isatty = sys.stdout.isatty() or sys.stderr.isatty()
        return cls(environment_variables(), shutil.which, isatty, sys.platform)


class Candidate(NamedTuple):
    """One viewer: a command with placeholders; without arguments, the built-in half blocks."""

    name: str
    arguments: tuple[str, ...] = ()
    needs_place: bool = False  # it positions itself on the screen, and cannot draw at the cursor


BUILTIN = Candidate("half blocks")


class Plan(NamedTuple):
    """What to try, best first; no candidates means that only the path is printed."""

    terminal: str
    reason: str
    graphics: str
    colors: str
    candidates: tuple[Candidate, ...] = ()


def detect(setting: ViewerSetting = "auto", environment: TerminalEnvironment | None = None) -> Plan:
    """The plan for a viewer setting in this environment (None: of this process).

    A command of the user's own is followed by half blocks alone: its failure must be visible. Raises
    `ConfigError` for a command that cannot work.
    """
    here = environment or TerminalEnvironment.here()
    variables, term = here.variables, here.variables.get("TERM", "")
    terminal, graphics, reason = _terminal(variables)
    if here.graphics:
        graphics, reason = here.graphics, "its own reply"
    colors = "truecolor" if variables.get("COLORTERM") in ("truecolor", "24bit") else "256"
    if variables.get("NO_COLOR"):
        colors = "none"
    if setting == "none":
        return Plan(terminal, "switched off by `none`", "none", colors)
    if setting not in VIEWER_WORDS:
        command = parse_template(setting)
        own = Candidate(command[0].rsplit("/", 1)[-1], command)
        return Plan(terminal, "set to your own command", "yours", colors, (own, BUILTIN))
    obstacles = (
        ("the output is not a terminal", not here.isatty),
        (f"TERM is `{term}`", term in ("", "dumb") and here.platform != "win32"),
        ("CI is set", bool(variables.get("CI"))),
        ("NO_COLOR is set", colors == "none"),
    )
    if unable := next((obstacle for obstacle, exists in obstacles if exists), ""):
        return Plan(terminal, unable, "none", colors)
    if setting == "builtin":
        return Plan(terminal, "set to `builtin`", "symbols", colors, (BUILTIN,))
    found = (each for each in _choices(terminal, graphics, colors) if here.which(each.arguments[0]))
    return Plan(terminal, reason, graphics, colors, (*found, BUILTIN))


def _terminal(variables: Mapping[str, str]) -> tuple[str, str, str]:
    """Its name, the graphics that it draws, and how that is known: by the first row that matches."""
    with Path(__file__).with_name("terminals.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name, pattern = row["variable"], row["pattern"]
            if name in variables and fnmatchcase(variables[name], pattern):
                is_presence = pattern in ("*", "?*")
                reason = f"{name} is set" if is_presence else f"{name}={variables[name]}"
                return row["terminal"], row["graphics"], reason
    return "unknown terminal", "symbols", f"TERM={variables.get('TERM', '')}"


def _choices(terminal: str, graphics: str, colors: str) -> Iterator[Candidate]:
    """Every viewer worth trying here, best first, installed or not."""
    if terminal in ("kitty", "ghostty"):
        # with stdin, transfer mode, place and window size given, icat does not read the terminal
        place = ("--transfer-mode=stream", "--place={cols}x{rows}@{left}x{top}", "--loop=0")
        window = "--use-window-size={tcols},{trows},{tpxw},{tpxh}"
        icat = ("kitten", "icat", "--stdin=no", *place, window, "{path}")
        yield Candidate("kitten icat", icat, needs_place=True)
    if terminal == "WezTerm":
        imgcat = ("wezterm", "imgcat", "--width={cols}", "--height={rows}", "{path}")
        yield Candidate("wezterm imgcat", imgcat)
    palette = ("--colors", "full" if colors == "truecolor" else "256") if graphics == "symbols" else ()
    chafa = ("chafa", "--format", graphics, "--animate", "off", *palette, "--size", "{cols}x{rows}", "{path}")
    yield Candidate(f"chafa ({graphics})", chafa)
    if graphics == "iterm":
        yield Candidate("imgcat", ("imgcat", "-W", "{cols}", "-H", "{rows}", "-r", "{path}"))
    yield Candidate("timg", ("timg", "-ph", "-g{cols}x{rows}", "--frames=1", "{path}"))
    # given both a width and a height, viu ignores the image's aspect ratio
    yield Candidate("viu", ("viu", "-s", "-1", "-b", "-w", "{cols}", "{path}"))


def desktop_command(environment: TerminalEnvironment | None = None) -> tuple[str, ...]:
    """The command that opens an image in a window here, to which the path is added; empty: none."""
    here = environment or TerminalEnvironment.here()
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
    arguments, null = [*command, str(image.absolute())], subprocess.DEVNULL
    try:
        window = subprocess.Popen(arguments, stdin=null, stdout=null, stderr=null, start_new_session=True)
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
    arguments, used, problem = tuple[str, ...](), set[str](), ""
    try:
        arguments = tuple(shlex.split(setting) if isinstance(setting, str) else setting)
        used = placeholders(*arguments)
    except ValueError as error:
        problem = f"cannot be split: {str(error).lower()}"
    if unknown := sorted(used.difference(_PLACEHOLDERS)):
        close = nearest(unknown[0], _PLACEHOLDERS)
        known = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
        hint = f"did you mean `{{{close}}}`?" if close else f"known here: {known}"
        raise ConfigError(f"the viewer's `{{{unknown[0]}}}` is not a placeholder", hint=hint)
    if not problem and not arguments:
        problem = "is empty"
    elif not problem and placeholders(arguments[0]):
        problem = "starts with a placeholder instead of a program"
    elif not problem and used.isdisjoint(_PLACEHOLDERS[:4]):
        problem = "does not contain {path}"
    elif not problem and {"|", ";", ">", "&&"}.intersection(arguments):
        problem = "needs a shell, and none is used"
    if not problem:
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


# Kitty's graphics query (sw.kovidgoyal.net/kitty/graphics-protocol), the terminal's name (XTVERSION) and its
# attributes (DA1, of which 4 is sixels); every terminal answers the last one, which ends the wait.
_QUERIES = b"\x1b_Gi=4211,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\" + b"\x1b[>0q" + b"\x1b[c"
_WIPE = b"\r\x1b[K"  # terminals that know none of this may have printed the first query
_ATTRIBUTES = re.compile(rb"\x1b\[\?([0-9;]*)c")
_NAME = re.compile(rb"\x1bP>\|([^\x1b]*)\x1b\\")


class TerminalReply(NamedTuple):
    """What a terminal reports: its name, or empty, and the best graphics that it draws, as in a `Plan`."""

    name: str
    graphics: str


def query_terminal(terminal: Path = Path("/dev/tty"), *, timeout_s: float = 0.5) -> TerminalReply | None:
    """The terminal's reply; None where there is no terminal, or none within the timeout.

    Only for `furnclip doctor --probe`: over a slow line a reply can come late and look like typing.
    """
    if sys.platform == "win32":
        return None
    reply, deadline = b"", time.monotonic() + timeout_s
    try:
        descriptor = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "r+b", buffering=0) as device:
            saved = termios.tcgetattr(device)
            try:
                tty.setcbreak(device.fileno(), termios.TCSAFLUSH)
                device.write(_QUERIES)
                while not _ATTRIBUTES.search(reply) and (left_s := deadline - time.monotonic()) > 0:
                    if select.select([device], [], [], left_s)[0]:
                        reply += device.read(4096) or b""
                device.write(_WIPE)
            finally:
                termios.tcsetattr(device, termios.TCSAFLUSH, saved)
    except (OSError, termios.error):
        return None
    attributes, named = _ATTRIBUTES.search(reply), _NAME.search(reply)
    name = named[1].decode("ascii", "replace") if named else ""
    if b"\x1b_Gi=4211;OK\x1b\\" in reply:
        return TerminalReply(name, "kitty")
    if name.startswith(("iTerm2", "WezTerm")):
        return TerminalReply(name, "iterm")
    if attributes is None:
        return None
    return TerminalReply(name, "sixels" if b"4" in attributes[1].split(b";") else "symbols")

"""Which viewers to try in this terminal, in which order, and why: a pure function and its tables.

Environment variables lie: a terminal started from another inherits its variables, and tmux keeps
those of whoever started its server. So multiplexers and editors come first, then what a terminal
sets afresh (`TERM_PROGRAM`, `TERM`), then the rest; among the rest those without graphics come
first, because coloured half blocks look right everywhere and a wrong protocol prints garbage.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from furnclip.config import VIEWER_WORDS, environment_variables
from furnclip.viewers.template import Setting, parse_template

Version = tuple[int, ...]


@dataclass(frozen=True)
class Surroundings:
    """Everything that detection looks at; tests pass their own."""

    env: Mapping[str, str]
    which: Callable[[str], str | None]
    isatty: bool
    platform: str
    chafa_version: Callable[[], Version] = lambda: (0,)
    graphics: str = ""
    """what the terminal itself answered when it was asked, which counts for more than `env`"""

    @classmethod
    def here(cls) -> Surroundings:
        """This process, its terminal and the programs on its PATH."""
        return cls(
            env=environment_variables(),
            which=shutil.which,
            isatty=sys.stdout.isatty() or sys.stderr.isatty(),
            platform=sys.platform,
            chafa_version=_chafa_version,
        )


@dataclass(frozen=True)
class Candidate:
    """One way to draw: a program with its arguments, or a protocol that is written directly."""

    name: str
    arguments: tuple[str, ...] = ()
    protocol: str = ""
    """`blocks`, `kitty` or `iterm`; empty for a program"""
    # kitten icat exits 0 even if it could not read the picture, and says so on stderr.
    stderr_means_failure: bool = False
    # Its output positions itself on the screen, so it cannot be drawn at the cursor.
    needs_place: bool = False


BUILTIN = Candidate("half blocks", protocol="blocks")


@dataclass(frozen=True)
class Plan:
    """What to try, best first; no candidates means that only the path is printed."""

    terminal: str
    reason: str
    graphics: str
    colors: str
    candidates: tuple[Candidate, ...] = ()
    missing: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """The plan in words, for `furnclip doctor`."""
        order = ", then ".join(candidate.name for candidate in self.candidates) or "none, only the path"
        said = [
            f"terminal: {self.terminal} ({self.reason})",
            f"graphics: {self.graphics}, colours: {self.colors}",
            f"viewers: {order}",
        ]
        if self.candidates and self.candidates[0].arguments:
            said.append(f"command: {' '.join(self.candidates[0].arguments)}")
        if self.missing:
            said.append(f"not found: {', '.join(self.missing)}")
        return said


# Name, variable, pattern; the first that fits wins.
_INSIDE = (
    ("zellij", "ZELLIJ", "*"),
    ("screen", "STY", "?*"),
    ("tmux", "TMUX", "?*"),
    ("tmux", "TERM_PROGRAM", "tmux"),
    ("tmux", "TERM", "tmux*"),
    ("tmux or screen", "TERM", "screen*"),
    ("Neovim", "NVIM", "?*"),
    ("Vim", "VIM_TERMINAL", "?*"),
    ("Emacs", "INSIDE_EMACS", "?*"),
)
# Name, graphics, variable, pattern.
_TERMINALS = (
    ("VS Code", "symbols", "TERM_PROGRAM", "vscode"),
    ("WezTerm", "iterm", "TERM_PROGRAM", "WezTerm"),
    ("iTerm2", "iterm", "TERM_PROGRAM", "iTerm.app"),
    ("ghostty", "kitty", "TERM_PROGRAM", "ghostty"),
    ("Warp", "kitty", "TERM_PROGRAM", "WarpTerminal"),
    ("mintty", "sixels", "TERM_PROGRAM", "mintty"),
    ("rio", "sixels", "TERM_PROGRAM", "rio"),
    ("Apple Terminal", "symbols", "TERM_PROGRAM", "Apple_Terminal"),
    ("kitty", "kitty", "TERM", "xterm-kitty"),
    ("ghostty", "kitty", "TERM", "xterm-ghostty"),
    ("foot", "sixels", "TERM", "foot*"),
    ("mlterm", "sixels", "TERM", "mlterm*"),
    ("contour", "sixels", "TERM", "contour*"),
    ("Alacritty", "symbols", "TERM", "alacritty*"),
    ("Linux console", "symbols", "TERM", "linux"),
    ("Alacritty", "symbols", "ALACRITTY_WINDOW_ID", "?*"),
    ("Windows Terminal", "symbols", "WT_SESSION", "?*"),
    ("a VTE terminal", "symbols", "VTE_VERSION", "?*"),
    ("xterm", "symbols", "XTERM_VERSION", "?*"),
    # Konsole draws sixels from 22.04 on; its version is six digits
    ("Konsole", "sixels", "KONSOLE_VERSION", "22[01][4-9]*"),
    ("Konsole", "sixels", "KONSOLE_VERSION", "22[1-9]*"),
    ("Konsole", "sixels", "KONSOLE_VERSION", "2[3-9]*"),
    ("Konsole", "symbols", "KONSOLE_VERSION", "?*"),
    # sshd passes LC_*: the one graphics signal that survives a plain ssh
    ("iTerm2", "iterm", "LC_TERMINAL", "iTerm2"),
    ("kitty", "kitty", "KITTY_WINDOW_ID", "?*"),
    ("ghostty", "kitty", "GHOSTTY_RESOURCES_DIR", "?*"),
    ("WezTerm", "iterm", "WEZTERM_PANE", "?*"),
    ("iTerm2", "iterm", "ITERM_SESSION_ID", "?*"),
    ("mlterm", "sixels", "MLTERM", "?*"),
    ("contour", "sixels", "TERMINAL_NAME", "contour"),
)
_TRUECOLOR = frozenset({"kitty", "ghostty", "WezTerm", "iTerm2", "foot", "Konsole", "Alacritty", "VS Code"})
_BOX = "{cols}x{rows}"
# No terminal is read with all four of stdin, transfer mode, place and window size given.
_ICAT = (
    *("--stdin=no", "--transfer-mode=stream", "--place={cols}x{rows}@{left}x{top}", "--loop=0"),
    *("--use-window-size={tcols},{trows},{tpxw},{tpxh}", "{path}"),
)


def detect(setting: Setting = "auto", surroundings: Surroundings | None = None) -> Plan:
    """The plan for a viewer setting in these surroundings (None: this process).

    An explicit command is followed by the half blocks and nothing else: whoever names a tool wants
    to hear that it failed. Raises `ConfigError` for a command that cannot work.
    """
    around = surroundings or Surroundings.here()
    custom = None if setting in VIEWER_WORDS else parse_template(setting)
    terminal, graphics, reason = _terminal(around.env)
    if around.graphics:
        graphics, reason = around.graphics, "it said so"
    colors = _colors(around.env, terminal)
    blind = _no_pictures(around, colors)
    if setting == "none":
        return Plan(terminal, "switched off by `none`", "none", colors)
    if blind and custom is None:
        return Plan(terminal, blind, "none", colors)
    if setting == "builtin":
        return Plan(terminal, "set to `builtin`", "symbols", colors, (BUILTIN,))
    if custom is not None:
        own = Candidate(custom[0].rsplit("/", 1)[-1], custom)
        return Plan(terminal, "set to your own command", "yours", colors, (own, BUILTIN))
    found, missing = _available(_choices(terminal, graphics, colors, around), around.which)
    return Plan(terminal, reason, graphics, colors, (*found, BUILTIN), missing)


def _terminal(env: Mapping[str, str]) -> tuple[str, str, str]:
    for name, variable, pattern in _INSIDE:
        if fnmatchcase(env.get(variable, ""), pattern) and variable in env:
            return name, "symbols", f"{variable} is set" if pattern in ("*", "?*") else _equals(env, variable)
    for name, graphics, variable, pattern in _TERMINALS:
        if variable in env and fnmatchcase(env[variable], pattern):
            return name, graphics, f"{variable} is set" if pattern == "?*" else _equals(env, variable)
    return "unknown terminal", "symbols", f"TERM={env.get('TERM', '')}"


def _equals(env: Mapping[str, str], variable: str) -> str:
    return f"{variable}={env[variable]}"


def _colors(env: Mapping[str, str], terminal: str) -> str:
    if env.get("NO_COLOR"):
        return "none"
    if env.get("COLORTERM") in ("truecolor", "24bit") or terminal in _TRUECOLOR:
        return "truecolor"
    return "256"


def _no_pictures(around: Surroundings, colors: str) -> str:
    """Why no picture can be shown, or empty."""
    if not around.isatty:
        return "the output is not a terminal"
    if around.env.get("TERM", "") in ("", "dumb") and around.platform != "win32":
        return f"TERM is `{around.env.get('TERM', '')}`"
    if around.env.get("CI"):
        return "CI is set"
    return "NO_COLOR is set" if colors == "none" else ""


def _choices(terminal: str, graphics: str, colors: str, around: Surroundings) -> Iterator[Candidate]:
    """Every tool worth trying here, best first, installed or not."""
    if terminal == "kitty" or (terminal == "ghostty" and around.which("kitten")):
        yield Candidate(
            "kitten icat", ("kitten", "icat", *_ICAT), stderr_means_failure=True, needs_place=True
        )
    if terminal == "WezTerm":
        yield Candidate(
            "wezterm imgcat", ("wezterm", "imgcat", "--width={cols}", "--height={rows}", "{path}")
        )
    if around.which("chafa"):
        yield _chafa(graphics, colors, around.chafa_version())
    else:
        yield Candidate("chafa", ("chafa",))
    if graphics in ("kitty", "iterm"):
        yield Candidate(f"{graphics} protocol", protocol=graphics)
    if graphics == "sixels":
        yield Candidate("img2sixel", ("img2sixel", "--static", "--width={pxw}", "{path}"))
    yield Candidate("timg", ("timg", "-ph", f"-g{_BOX}", "--frames=1", "{path}"))
    # given both a width and a height, viu ignores the picture's shape
    yield Candidate("viu", ("viu", "-s", "-1", "-b", "-w", "{cols}", "{path}"))
    yield Candidate("catimg", ("catimg", "-r", "1", "-w", "{cols}", "-l", "0", "{path}"))


def _chafa(graphics: str, colors: str, version: Version) -> Candidate:
    # From 1.16 on chafa asks the terminal what it is and would read the user's keys as the answer.
    quiet = ("--probe", "off") if version >= (1, 16) else ()
    palette = ("--colors", "full" if colors == "truecolor" else "256") if graphics == "symbols" else ()
    fixed = ("chafa", "--format", graphics, "--animate", "off", *palette, *quiet)
    return Candidate(f"chafa ({graphics})", (*fixed, "--size", _BOX, "{path}"))


def _available(
    candidates: Iterator[Candidate], which: Callable[[str], str | None]
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    found: list[Candidate] = []
    missing: list[str] = []
    for candidate in candidates:
        if candidate.protocol or which(candidate.arguments[0]):
            found.append(candidate)
        else:
            missing.append(candidate.arguments[0])
    return tuple(found), tuple(missing)


def _chafa_version() -> Version:
    try:
        said = subprocess.run(
            ["chafa", "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=2, check=False
        ).stdout.decode("ascii", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    numbers = re.search(r"(\d+)\.(\d+)", said)
    return tuple(int(number) for number in numbers.groups()) if numbers else (0,)

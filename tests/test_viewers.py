"""Viewers: what is detected where, templates without a shell, runners that hurt nobody, half blocks."""

from __future__ import annotations

import os
import pty
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from furnclip.errors import ConfigError
from furnclip.viewers import (
    TEST_CARD,
    Box,
    TerminalEnvironment,
    Viewer,
    detect,
    half_blocks,
    open_on_desktop,
    query_terminal,
    show_image,
)
from furnclip.viewers.detection import Candidate, Plan, TerminalReply, desktop_command, parse_template

EVERYTHING = {"chafa", "timg", "viu", "kitten", "wezterm", "imgcat"}


def around(env: Mapping[str, str], tools: set[str] = EVERYTHING, **more: object) -> TerminalEnvironment:
    values = {"isatty": True, "platform": "linux", **more}
    return TerminalEnvironment(
        variables=env, which=lambda name: f"/bin/{name}" if name in tools else None, **values
    )


KITTY = {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}
PLAIN = {"TERM": "xterm-256color"}
TABLE = [
    # environment, terminal, graphics, first viewer
    (KITTY, "kitty", "kitty", "kitten icat"),
    ({"TERM": "xterm-ghostty"}, "ghostty", "kitty", "kitten icat"),
    ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "ghostty", "kitty", "kitten icat"),
    ({**PLAIN, "TERM_PROGRAM": "WezTerm"}, "WezTerm", "iterm", "wezterm imgcat"),
    ({**PLAIN, "TERM_PROGRAM": "iTerm.app"}, "iTerm2", "iterm", "chafa (iterm)"),
    ({**PLAIN, "SSH_TTY": "/dev/pts/1", "LC_TERMINAL": "iTerm2"}, "iTerm2", "iterm", "chafa (iterm)"),
    ({"TERM": "foot-extra"}, "foot", "sixels", "chafa (sixels)"),
    ({**PLAIN, "KONSOLE_VERSION": "220400"}, "Konsole", "sixels", "chafa (sixels)"),
    ({**PLAIN, "KONSOLE_VERSION": "240801"}, "Konsole", "sixels", "chafa (sixels)"),
    ({**PLAIN, "KONSOLE_VERSION": "211203"}, "Konsole", "symbols", "chafa (symbols)"),
    ({**PLAIN, "TERM_PROGRAM": "mintty"}, "mintty", "sixels", "chafa (sixels)"),
    (
        {**PLAIN, "WT_SESSION": "x", "WSL_DISTRO_NAME": "Debian"},
        "Windows Terminal",
        "symbols",
        "chafa (symbols)",
    ),
    (
        {**PLAIN, "TERM_PROGRAM": "vscode", **KITTY, "TERM": "xterm-256color"},
        "VS Code",
        "symbols",
        "chafa (symbols)",
    ),
    (
        {**PLAIN, "VTE_VERSION": "7200", "KITTY_WINDOW_ID": "1"},
        "unknown terminal",
        "symbols",
        "chafa (symbols)",
    ),
    ({"TERM": "alacritty", "KITTY_WINDOW_ID": "1"}, "unknown terminal", "symbols", "chafa (symbols)"),
    ({**KITTY, "TMUX": "/tmp/t,1,0"}, "tmux", "symbols", "chafa (symbols)"),
    ({**KITTY, "TERM": "screen-256color"}, "tmux or screen", "symbols", "chafa (symbols)"),
    ({**KITTY, "STY": "1.x"}, "screen", "symbols", "chafa (symbols)"),
    ({**KITTY, "ZELLIJ": "0"}, "zellij", "symbols", "chafa (symbols)"),
    ({**PLAIN, "NVIM": "/tmp/n", "TERM_PROGRAM": "WezTerm"}, "Neovim", "symbols", "chafa (symbols)"),
    ({**PLAIN, "INSIDE_EMACS": "29.1"}, "Emacs", "symbols", "chafa (symbols)"),
    (PLAIN, "unknown terminal", "symbols", "chafa (symbols)"),
]


@pytest.mark.parametrize(("env", "terminal", "graphics", "first"), TABLE)
def test_detection(env: dict[str, str], terminal: str, graphics: str, first: str) -> None:
    plan = detect("auto", around(env))
    assert (plan.terminal, plan.graphics, plan.candidates[0].name) == (terminal, graphics, first)
    assert plan.candidates[-1].name == "half blocks"


@pytest.mark.parametrize(
    ("env", "isatty", "reason"),
    [
        (PLAIN, False, "the output is not a terminal"),
        ({"TERM": "dumb"}, True, "TERM is `dumb`"),
        ({}, True, "TERM is ``"),
        ({**PLAIN, "CI": "true"}, True, "CI is set"),
        ({**KITTY, "NO_COLOR": "1"}, True, "NO_COLOR is set"),
    ],
)
def test_where_only_the_path_is_printed(env: dict[str, str], isatty: bool, reason: str) -> None:
    plan = detect("auto", around(env, isatty=isatty))
    assert plan.candidates == ()
    assert plan.reason == reason


def test_only_what_is_installed_is_tried() -> None:
    plan = detect("auto", around(PLAIN, {"viu"}))
    assert [candidate.name for candidate in plan.candidates] == ["viu", "half blocks"]


@pytest.mark.parametrize(
    ("env", "order"),
    [
        (KITTY, ["kitten icat", "chafa (kitty)", "timg", "viu", "half blocks"]),
        ({**PLAIN, "TERM_PROGRAM": "WezTerm"}, ["wezterm imgcat", "chafa (iterm)", "imgcat", "timg", "viu"]),
        ({**PLAIN, "TERM_PROGRAM": "iTerm.app"}, ["chafa (iterm)", "imgcat", "timg", "viu", "half blocks"]),
        (PLAIN, ["chafa (symbols)", "timg", "viu", "half blocks"]),
    ],
)
def test_viewers_are_tried_in_this_order(env: dict[str, str], order: list[str]) -> None:
    assert [each.name for each in detect("auto", around(env)).candidates][: len(order)] == order


def test_an_explicit_viewer_is_followed_by_half_blocks_only() -> None:
    plan = detect(["mytool", "{path}"], around(KITTY))
    assert [candidate.name for candidate in plan.candidates] == ["mytool", "half blocks"]
    assert detect("builtin", around(KITTY)).candidates[0].name == "half blocks"
    assert detect("none", around(KITTY)).candidates == ()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("", "is empty"),
        ("chafa", "does not contain {path}"),
        ("{path}", "starts with a placeholder instead of a program"),
        ("chafa {path} | less", "needs a shell, and none is used"),
        ("chafa '{path}", "cannot be split: no closing quotation"),
    ],
)
def test_a_template_that_cannot_work_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match="viewer") as caught:
        parse_template(setting)
    assert caught.value.message == f"the viewer `{setting}` {message}"


def test_an_unknown_placeholder_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_template("chafa {pathh}")
    assert caught.value.message == "the viewer's `{pathh}` is not a placeholder"
    assert caught.value.hint == "did you mean `{path}`?"
    with pytest.raises(ConfigError, match="not a placeholder"):
        parse_template("chafa {path.__class__}")


@pytest.fixture
def picture() -> Path:
    return TEST_CARD


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "viewer.sh"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return f"{path} {{path}}"


def draw(setting: str, picture: Path, *, timeout_s: float = 0.6, **box: int) -> tuple[Viewer, object]:
    viewer = Viewer(detect(setting, around({**PLAIN, "COLORTERM": "truecolor"})), timeout_s=timeout_s)
    return viewer, viewer.draw(picture, Box(cols=20, rows=6, **box))


BAD_VIEWERS = {
    "fails": ("echo broken >&2; exit 2", "viewer.sh: exit code 2: broken"),
    "hangs": ("sleep 60", "viewer.sh: timed out"),
    "is silent": ("exit 0", "viewer.sh: it drew nothing"),
    "never ends": ("exec yes", "viewer.sh: it writes without end"),
    "stops inside kitty's": ("printf '\\033_Gf=100;AAAA'", "its output stops in the middle of an image"),
    "stops inside sixels": ("printf '\\033Pq#0;2;0;0;0'", "its output stops in the middle of an image"),
    "stops inside iTerm's": ("printf '\\033]1337;File=:AAAA'", "its output stops in the middle of an image"),
    "leaves a child": ("(sleep 60; echo late) & exit 3", "viewer.sh: exit code 3"),
    "wants keys": ("head -c1 </dev/tty || exit 4", "viewer.sh: exit code 4"),
}


@pytest.mark.parametrize(("body", "complaint"), BAD_VIEWERS.values(), ids=BAD_VIEWERS)
def test_a_bad_viewer_gives_way_to_half_blocks(
    tmp_path: Path, picture: Path, body: str, complaint: str
) -> None:
    start = time.monotonic()
    viewer, drawing = draw(script(tmp_path, body), picture)
    assert drawing.viewer == "half blocks"
    assert complaint in drawing.failures[0]
    assert "▀".encode() in drawing.data
    assert time.monotonic() - start < 5
    again = viewer.draw(picture, Box(cols=20, rows=6))
    assert again.failures == ()  # not tried a second time


def test_text_keeps_its_colours_and_nothing_else(tmp_path: Path, picture: Path) -> None:
    hostile = r"\033[2J\033]0;title\007\033[6n\033[31mRED\033[0m\033[?1049l\033[38;5"
    _, drawing = draw(script(tmp_path, f"printf '{hostile}'"), picture)
    assert drawing.data == b"\x1b[31mRED\x1b[0m\x1b[0m\r\n"


def test_lines_go_to_the_box_and_no_further(tmp_path: Path, picture: Path) -> None:
    _, drawing = draw(script(tmp_path, "seq 1 50"), picture, left=3, top=2)
    assert drawing.data.startswith(b"\x1b[3;4H1\x1b[0m\x1b[4;4H2")
    assert b"\x1b[8;4H6" in drawing.data
    assert b"\x1b[9;4H" not in drawing.data


def test_no_shell_sees_the_arguments(tmp_path: Path) -> None:
    odd = tmp_path / "-dash $(touch pwned) 'q' {cols} ü.png"
    Image.new("RGB", (20, 20), "red").save(odd)
    seen = tmp_path / "seen"
    _, drawing = draw(script(tmp_path, f'printf "%s" "$1" > {seen}; echo shown'), odd)
    assert drawing.viewer == "viewer.sh"
    assert seen.read_text() == str(odd)


def test_icat_that_exits_0_but_draws_nothing_has_failed(tmp_path: Path, picture: Path) -> None:
    fake = tmp_path / "kitten"
    fake.write_text("#!/bin/sh\necho 'cannot decode' >&2\n")
    fake.chmod(0o755)
    icat = Candidate("kitten icat", (str(fake), "{path}"), needs_place=True)
    plan = Plan("kitty", "", "kitty", "truecolor", (icat, Candidate("half blocks")))
    drawing = Viewer(plan).draw(picture, Box(cols=20, rows=6, left=0, top=0))
    assert drawing.failures == ("kitten icat: it drew nothing",)


def test_icat_is_not_asked_without_a_place(picture: Path) -> None:
    viewer = Viewer(detect("auto", around(KITTY, {"kitten"})))
    assert viewer.draw(picture, Box(cols=20, rows=6)).viewer == "half blocks"


IMAGE = r"\033_Ga=T;AAAA\033\\"
AROUND_IMAGES = {
    "titles and queries": (r"\033]0;title\007" + IMAGE + r"\033[6n", b"\x1b_Ga=T;AAAA\x1b\\"),
    "another screen": (r"\033[?1049h" + IMAGE + r"\033[?1049l", b"\x1b_Ga=T;AAAA\x1b\\"),
    "the clipboard": (IMAGE + r"\033]52;c;AAAA\033\\", b"\x1b_Ga=T;AAAA\x1b\\"),
    "a bell and a C1 control": (r"\007" + IMAGE + r"\302\233", b"\x1b_Ga=T;AAAA\x1b\\"),
    "moves": (r"\033[2;3H" + IMAGE + r"\033[1B", b"\x1b[2;3H\x1b_Ga=T;AAAA\x1b\\\x1b[1B"),
    "two images": (IMAGE + r"\n" + IMAGE, b"\x1b_Ga=T;AAAA\x1b\\\n\x1b_Ga=T;AAAA\x1b\\"),
}


@pytest.mark.parametrize(("body", "kept"), AROUND_IMAGES.values(), ids=AROUND_IMAGES)
def test_beside_an_image_only_moves_of_the_cursor_are_kept(
    tmp_path: Path, picture: Path, body: str, kept: bytes
) -> None:
    _, drawing = draw(script(tmp_path, f"printf '{body}'"), picture)
    assert (drawing.failures, drawing.data) == ((), kept + b"\x1b[0m")


@pytest.mark.parametrize("colors", ["truecolor", "256"])
def test_half_blocks_keep_shape_and_colour(colors: str) -> None:
    image = Image.new("RGB", (40, 10), (255, 0, 0))
    lines = half_blocks(image, cols=20, rows=20, colors=colors)
    assert len(lines) == 3  # 20 wide, 5 pixels high: three lines, the last one half
    red = "38;2;255;0;0" if colors == "truecolor" else "38;5;196"
    assert all(line.startswith(f"\x1b[{red}") and line.endswith("\x1b[0m") for line in lines)
    assert all(line.count("▀") == 20 for line in lines)
    assert "48;" not in lines[-1]


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(1, 30))
def test_half_blocks_stay_inside_the_box(width: int, height: int, cols: int, rows: int) -> None:
    lines = half_blocks(Image.new("RGB", (width, height)), cols=cols, rows=rows)
    assert 1 <= len(lines) <= rows
    assert {line.count("▀") for line in lines} <= set(range(1, cols + 1))


def test_an_image_is_drawn_as_it_lies_whatever_its_name(tmp_path: Path) -> None:
    source = tmp_path / "ünusual $name.jpg"
    Image.new("RGB", (3000, 20), (0, 0, 255)).save(source)
    drawing = show_image(source, detect("builtin", around(PLAIN)), cols=30)
    assert drawing.data.decode().count("▀") == 30
    assert list(tmp_path.iterdir()) == [source]


def test_show_image_without_a_terminal_shows_nothing(tmp_path: Path, picture: Path) -> None:
    drawing = show_image(picture, detect("auto", around(PLAIN, isatty=False)))
    assert (drawing.data, drawing.viewer) == (b"", "none")


def test_windows_programs_are_given_windows_paths(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    viewer = script(tmp_path, "printf '%s' \"$1\"").replace("{path}", "{winpath}")
    _, drawing = draw(viewer, picture)
    assert "viewer.sh: cannot start" in drawing.failures[0]  # not WSL: there is no wslpath
    (tools / "wslpath").write_text("#!/bin/sh\nprintf 'C:\\\\%s\\n' \"${2##*/}\"\n")
    (tools / "wslpath").chmod(0o755)
    _, drawing = draw(viewer, picture)
    assert drawing.data == b"C:\\test-card.png\x1b[0m\r\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 0", "opened with {}"),
        ("exit 3", "{} could not open the image"),
        ("sleep 1", "opened with {}"),
    ],
)
def test_a_desktop_program_that_fails_at_once_is_noticed(
    tmp_path: Path, picture: Path, body: str, message: str
) -> None:
    program = tmp_path / "window"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    assert open_on_desktop(picture, (str(program),)) == message.format(program)
    nothing = str(tmp_path / "nothing")
    assert open_on_desktop(picture, (nothing,)) == f"{nothing} could not open the image"
    assert open_on_desktop(picture, ()) == "there is no desktop to open a window on"


def test_pictures_of_ones_own_kitty_command_are_erased(tmp_path: Path, picture: Path) -> None:
    viewer, drawing = draw(script(tmp_path, r"printf '\033_Gf=100;AAAA\033\\'"), picture)
    assert drawing.data.startswith(b"\x1b_G")
    assert viewer.erasing.startswith(b"\x1b_Ga=d")
    assert draw(script(tmp_path, "echo text"), picture)[0].erasing == b""


def test_a_picture_wrapped_for_tmux_is_whole(tmp_path: Path, picture: Path) -> None:
    wrapped = r"\033Ptmux;\033\033_Gf=100;AAAA\033\033\\\033\\"
    _, drawing = draw(script(tmp_path, f"printf '{wrapped}'"), picture)
    assert drawing.failures == ()
    _, drawing = draw(script(tmp_path, f"printf '{wrapped[:24]}'"), picture)
    assert "stops in the middle" in drawing.failures[0]


ANSWERS = [
    (b"\x1b_Gi=4211;OK\x1b\\\x1bP>|kitty(0.48)\x1b\\\x1b[?62;c", TerminalReply("kitty(0.48)", "kitty")),
    (b"\x1bP>|iTerm2 3.5\x1b\\\x1b[?62;4c", TerminalReply("iTerm2 3.5", "iterm")),
    (b"\x1bP>|foot(1.16)\x1b\\\x1b[?62;4;22c", TerminalReply("foot(1.16)", "sixels")),
    (b"\x1b[?64;14;22c", TerminalReply("", "symbols")),
    (b"\x1b_Gi=4211;ENOTSUPPORTED\x1b\\\x1b[?6c", TerminalReply("", "symbols")),
    (b"", None),
]


@pytest.mark.parametrize(("said", "answer"), ANSWERS)
def test_a_terminal_is_asked_and_left_as_it_was(said: bytes, answer: TerminalReply | None) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)

    def terminal() -> None:
        heard = b""
        while not heard.endswith(b"\x1b[c"):
            heard += os.read(ours, 4096)
        for byte in said:  # a slow line
            os.write(ours, bytes([byte]))

    thread = Thread(target=terminal)
    thread.start()
    assert query_terminal(Path(os.ttyname(theirs)), timeout_s=5 if answer else 0.2) == answer
    thread.join()
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_without_a_terminal_nobody_is_asked(tmp_path: Path) -> None:
    assert query_terminal(tmp_path / "nothing") is None
    (tmp_path / "file").touch()
    assert query_terminal(tmp_path / "file") is None


def test_what_a_terminal_answers_counts_for_more_than_its_variables() -> None:
    plan = detect("auto", around(PLAIN, graphics="sixels"))
    assert (plan.graphics, plan.candidates[0].name) == ("sixels", "chafa (sixels)")


DESKTOPS = [
    ({"DISPLAY": ":0"}, "linux", ("xdg-open",)),
    ({}, "linux", ()),
    ({"SSH_CONNECTION": "x"}, "darwin", ()),
    ({}, "darwin", ("open",)),
    ({"WSL_DISTRO_NAME": "Debian"}, "linux", ("wslview",)),
    ({"DISPLAY": ":0", "CI": "1"}, "linux", ()),
]


@pytest.mark.parametrize(("env", "platform", "command"), DESKTOPS)
def test_desktop_windows(env: dict[str, str], platform: str, command: tuple[str, ...]) -> None:
    tools = {"xdg-open", "wslview", "open"}
    assert desktop_command(around(env, tools, platform=platform)) == command

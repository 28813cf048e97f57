"""The arena in a pseudo-terminal: what is on the screen, what is in the file, what is left behind.

By default a sample of terminals, viewers and kills; all of them with FURNCLIP_FULL=1.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from furnclip import ArenaApp
from furnclip.arena import VoteBook, duel_lines, tables
from furnclip.arena.lineup import JudgedQuery
from furnclip.arena.session import View, compose
from furnclip.arena.terminal import KeyReader
from furnclip.config import load_config
from furnclip.viewers import Window
from tests.arena_contest import write_contest
from tests.arena_person import Person

FULL = bool(os.environ.get("FURNCLIP_FULL"))


def assert_restored(person: Person, *, code: int) -> None:
    left = person.rest()
    assert f"exit={code}" in left, left[-2000:]
    modes = left[left.rindex("speed") :]
    assert re.search(r"(?<!-)icanon", modes)
    assert re.search(r"(?<!-)\becho\b", modes)
    assert re.search(r"susp = \^Z", modes)
    for on, off in (("?1049h", "?1049l"), ("?25l", "?25h"), ("?2004h", "?2004l")):
        assert left.rindex(on) < left.rindex(off)


def votes_in(folder: Path) -> list[str]:
    return [vote.choice for vote in VoteBook(folder / "work/arena/votes.jsonl").votes()]


@pytest.fixture
def contest(tmp_path: Path) -> Path:
    return write_contest(tmp_path / "contest", config="viewer_timeout_s = 1.0\nrepeat_every = 0")


VIEWERS = {
    "succeeds": "printf '\\033[32mPICTURE\\033[0m\\n'",
    "fails": "echo sorry >&2; exit 3",
    "hangs": "sleep 300",
    "half an escape": "printf '\\033]1337;File=inline=1:AAAA'",
    "reads the keyboard": "head -c 1 < /dev/tty || exit 5",
}
SIZES = ((80, 24), (40, 20), (200, 50))
EVERY = list(itertools.product(VIEWERS, SIZES, (True, False)))
# Each viewer, each size, with and without colour at least once.
SAMPLE = [
    ("succeeds", (80, 24), True),
    ("fails", (40, 20), True),
    ("hangs", (200, 50), False),
    ("half an escape", (80, 24), False),
    ("reads the keyboard", (40, 20), True),
]


@pytest.mark.parametrize(("kind", "size", "color"), EVERY if FULL else SAMPLE)
def test_right_screen_right_votes_terminal_restored(
    contest: Path, tmp_path: Path, kind: str, size: tuple[int, int], color: bool
) -> None:
    viewer = tmp_path / "viewer"
    viewer.write_text(f"#!/bin/sh\n{VIEWERS[kind]}\n")
    viewer.chmod(0o755)
    env = {} if color else {"NO_COLOR": "1"}
    person = Person(contest, "--viewer", f"{viewer} {{path}}", cols=size[0], rows=size[1], **env)
    person.wait("furnclip arena", "0 votes  20 left", "query (image): ", "Q quit")
    if kind == "succeeds":
        person.wait("PICTURE")
    elif color:
        person.wait("▀")
    shown = person.text
    for key in "ABTXNUOQ?":
        assert re.search(rf"(^|\s){re.escape(key)} \w", shown)
    assert "tuned" not in shown
    assert "base" not in shown
    person.press("a").wait("1 vote ", "vote 1 saved: A")
    person.press("b").wait("2 votes", "vote 2 saved: B")
    person.press("u").wait("1 vote ", "vote undone")
    person.press("x").wait("2 votes", "vote 2 saved: both bad")
    assert not re.search(rb"tuned|base|" + b"b" * 16, person.raw)  # nothing was ever sent that tells
    person.press("q")
    assert_restored(person, code=0)
    assert votes_in(contest) == ["A", "X"]
    colored = re.search(rb"\x1b\[(?:[0-9]+;)*(?:3[0-7]|38;[0-9;]+)m", person.raw)
    assert bool(colored) == color


def test_no_stray_byte_is_a_vote(contest: Path, tmp_path: Path) -> None:
    viewer = tmp_path / "slow"
    viewer.write_text("#!/bin/sh\nsleep 0.8\nprintf 'PICTURE\\033[c\\033[6n\\n'\n")
    viewer.chmod(0o755)
    person = Person(contest, "--viewer", f"{viewer} {{path}}")
    person.wait("drawing the images")
    person.child.send("abtx")  # typed before the picture was there
    person.wait("PICTURE", "0 votes")
    person.child.send("a")  # within the first moments: a bounce
    answers = (
        b"\x1b[?62;4;22c",  # what terminals are
        b"\x1b[12;40R",  # where the cursor is
        b"\x1b_Gi=31;BAD:A\x1b\\",  # kitty's answer
        b"\x1bP>|XTerm(379)A\x1b\\",
        b"\x1b]11;rgb:aaaa/bbbb/aaaa\x07",
        b"\x1b[A\x1b[B\x1bOA",  # arrows
        b"\x1ba",  # Alt and A
        b"\x1b[200~bananas and tables\x1b[201~",  # a paste
    )
    for answer in answers:
        person.press(answer)
    for byte in b"\x1b[A\x1b_Ab\x1b\\":  # the same in pieces, over a slow line
        person.child.send(bytes([byte]))
        time.sleep(0.05)
    person.press("zzz")
    person.press("aaaa").wait("1 vote ", "PICTURE")  # a key held down is one vote
    person.press("u").wait("vote undone", "PICTURE")
    person.press("Q")
    assert_restored(person, code=0)
    assert votes_in(contest) == []


def test_help_and_a_new_size_do_not_vote(contest: Path) -> None:
    person = Person(contest, "--viewer", "builtin").wait("0 votes", "▀")
    person.press("?").wait("undo your last vote")
    person.press("a").wait("0 votes", "▀")
    person.screen.resize(20, 40)
    person.child.setwinsize(20, 40)
    person.wait("B wins")
    assert max(len(line.rstrip()) for line in person.screen.display) <= 40
    person.screen.resize(6, 30)
    person.child.setwinsize(6, 30)
    person.wait("too")
    person.press("a")  # nothing to see, nothing to judge
    person.screen.resize(24, 80)
    person.child.setwinsize(24, 80)
    person.wait("0 votes", "▀")
    person.press("\x03")  # Ctrl-C
    assert_restored(person, code=130)
    assert votes_in(contest) == []


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
MOMENTS = ("on a query", "in the help", "while an image is drawn", "after Ctrl-S", "twice")
EVERY_END = list(itertools.product(SIGNALS, MOMENTS))
# Each signal and each moment at least once.
SAMPLE_OF_ENDS = [
    (signal.SIGINT, "while an image is drawn"),
    (signal.SIGTERM, "on a query"),
    (signal.SIGTERM, "after Ctrl-S"),
    (signal.SIGHUP, "in the help"),
    (signal.SIGQUIT, "twice"),
]


@pytest.mark.parametrize(("number", "moment"), EVERY_END if FULL else SAMPLE_OF_ENDS)
def test_a_signal_ends_it_between_two_votes_with_the_terminal_as_it_was(
    contest: Path, tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    viewer = tmp_path / "viewer"
    viewer.write_text("#!/bin/sh\nsleep $(cat pause)\necho IMAGE\n")
    viewer.chmod(0o755)
    (contest / "pause").write_text("0")
    person = Person(contest, "--viewer", f"{viewer} {{path}}").wait("0 votes", "IMAGE")
    (contest / "pause").write_text("0.9")  # for all but the two that are drawn already
    for count in (1, 2, 3):
        person.press("a").wait(f"vote {count} saved", "IMAGE")
    if moment == "in the help":
        person.press("?").wait("undo your last vote")
    elif moment == "after Ctrl-S":
        person.child.send("\x13")
        time.sleep(0.2)
    elif moment == "while an image is drawn":
        person.press("a").wait("drawing the")
    _kill(person, number)
    if moment == "twice":
        _kill(person, number)
    assert_restored(person, code=130)
    said = person.raw[person.raw.rindex(b"?1049l") :]
    assert b"Traceback" not in said
    assert said.count(b"error: ") == said.count(b"hint: ") == 1
    assert votes_in(contest) == ["A"] * (4 if moment == "while an image is drawn" else 3)


@pytest.mark.parametrize("key", ["\x03", "\x1c", "\x1a"], ids=["Ctrl-C", "Ctrl-backslash", "Ctrl-Z"])
def test_a_key_that_would_stop_a_program_does_not_leave_its_screen_behind(contest: Path, key: str) -> None:
    person = Person(contest, "--viewer", "none").wait("0 votes")
    person.press("b").wait("vote 1 saved")
    person.press(key)
    if key != "\x03":
        person.press("q")
    assert_restored(person, code=130 if key == "\x03" else 0)
    assert votes_in(contest) == ["B"]


HOSTILE = (
    "red \x1b[2J\x1b]0;owned\x07 sofa",  # clears the screen, sets the window's title
    "chair \x1b]52;c;b3duZWQ=\x1b\\",  # writes to the clipboard
    "lamp \x9b2J \x90q\x9c",  # the same with C1 controls
    "table \x1b[6n\x1b[c",  # makes the terminal type a reply
    "stool\r\nA wins\x0b\x0c\x85\u2028",  # leaves its line
    "desk \u202egnol\u2066",  # turns the rest of the line around
)


def test_text_of_others_does_not_drive_the_terminal(tmp_path: Path) -> None:
    sent = []
    for number, words in enumerate((HOSTILE, ["harmless"])):
        folder = write_contest(tmp_path / str(number), config="repeat_every = 0", products=12, words=words)
        person = Person(folder, "--viewer", "none").wait("0 votes")
        for count in range(1, 5):
            person.press("a").wait(f"{count} vote")
        person.press("q")
        assert_restored(person, code=0)
        sent.append(set(re.findall(rb"\x1b(?:\[[0-?]*[a-zA-Z]|.)", person.raw)))
    assert sent[0] == sent[1]  # no escape sequence that harmless words would not have had
    assert not re.search("[\x80-\x9f\u2028\u202e\u2066]", person.raw.decode())


def test_file_names_and_viewers_messages_do_not_drive_the_terminal(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", config="repeat_every = 0", products=8)
    viewer = tmp_path / "v\x1b]0;owned\x07"
    viewer.write_text("#!/bin/sh\nprintf 'no \\033[2J\\033]0;owned\\007 image\\n' >&2; exit 3\n")
    viewer.chmod(0o755)
    person = Person(folder, "--viewer", f"{shlex.quote(str(viewer))} {{path}}", cols=200)
    person.wait("exit code 3: no", "now half blocks").press("q")
    assert_restored(person, code=0)
    assert b"\x1b]" not in person.raw


def test_the_last_vote_ends_it_and_the_next_start_says_so(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", config="query_limit = 3\nrepeat_every = 0")
    person = Person(folder, "--viewer", "none", "--json")
    for count in range(3):
        person.wait(f"{count} vote").press("t")
    assert_restored(person, code=0)
    line = next(line for line in person.raw.splitlines() if line.startswith(b"{") or b'{"votes"' in line)
    payload = json.loads(line[line.index(b"{") :])
    assert payload["duels"][0]["score"]["ties"] == 3
    again = Person(folder)
    assert "everything has been judged" in again.rest()


def test_a_viewer_from_the_folder_is_asked_about(tmp_path: Path) -> None:
    folder = write_contest(tmp_path / "c", config='viewer = "touch pwned {path}"')
    person = Person(folder, cols=300).wait("which starts that program", "[y/N]")
    person.child.send("n\r")
    person.wait("0 votes").press("q")
    assert_restored(person, code=0)
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("number", range(50 if FULL else 4))
def test_what_was_acknowledged_is_in_the_file_whatever_kills_it(
    tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    folder = _killed_contest(tmp_path_factory)
    dice = random.Random(number)
    only_votes = number % 4 < 2
    before = votes_in(folder)
    person = Person(folder, "--viewer", "none")
    person.wait(f"{sum(vote != 'N' for vote in before)} vote")
    until = time.monotonic() + dice.uniform(0.2, 3.0)
    while time.monotonic() < until:
        person.child.send(dice.choice("abtxn" if only_votes else "abtxu"))
        person.read(0.02)
    _kill(person, signal.SIGKILL if number % 2 else signal.SIGHUP)
    while person.read(0.2) and b"exit=" not in person.raw:
        pass
    assert len(list((folder / "work/cache/arena").iterdir())) <= 1  # its own; the next start removes that
    counts = re.findall(rb"(\d+) votes?\b.{0,20}?(\d+) left", person.raw)
    acknowledged = int(counts[-1][0])
    standing = [vote for vote in VoteBook(folder / "work/arena/votes.jsonl").votes() if vote.choice != "N"]
    # One vote (or one undo) may be on the disk and not on the screen yet; none may be the other way round.
    assert len(standing) - acknowledged in ((0, 1) if only_votes else (-1, 0, 1))
    lines = (folder / "work/arena/votes.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    undone = {event["vote_id"] for event in events if event["event"] == "undo"}
    kept = [event for event in events if event["event"] == "vote" and event["vote_id"] not in undone]
    things = [(event["rater"], event["query"]["query_id"]) for event in kept]
    assert len(things) == len(set(things))


_KILLED: list[Path] = []


def _killed_contest(factory: pytest.TempPathFactory) -> Path:
    """One folder for all kills: each start goes on from where the last one was cut off."""
    if not _KILLED:
        folder = factory.mktemp("killed") / "contest"
        _KILLED.append(write_contest(folder, products=1200, config="repeat_every = 0\nquery_limit = 600"))
    return _KILLED[0]


def _kill(person: Person, number: int) -> None:
    """Signal the arena itself, not the shell around it."""
    import psutil

    for child in psutil.Process(person.child.pid).children():
        child.send_signal(number)


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"aB?", ["A", "B", "?"]),
        (b"\x1b[Aa", ["A"]),
        (b"\x1b[1;5Bb", ["B"]),
        (b"\x1b_Gi=1;OK\x1b\\t", ["T"]),
        (b"\x1b]0;aaa\x07x", ["X"]),
        (b"\x1bPabc\x1b[Ab\x1b\\n", ["B", "N"]),  # a string cut off by an arrow ends there
        (b"\x1b[200~abtx\x1b[201~n", ["N"]),
        (b"[A", []),  # the rest of a sequence whose escape came long before
        ("é".encode(), ["É"]),
    ],
)
def test_keys_are_what_a_finger_pressed(data: bytes, keys: list[str]) -> None:
    assert KeyReader().feed(data, 0.0) == keys
    slowly, reader = [], KeyReader()
    for number in range(len(data)):
        slowly += reader.feed(data[number : number + 1], number * 0.1)
    if data.isascii():
        assert slowly == keys


def test_an_escape_that_stays_alone_is_the_escape_key() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b", 0.0) == []
    assert reader.feed(b"", 0.1) == []
    assert reader.feed(b"", 1.0) == ["\x1b"]
    assert reader.feed(b"a", 1.1) == ["A"]


def test_a_string_that_never_ends_does_not_swallow_for_ever() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b_Gi=1", 0.0) == []
    assert reader.feed(b"a", 1.0) == []
    assert reader.feed(b"a", 3.0) == ["A"]


COMPOUND, JAPANESE = "Wohnzimmerschrankbefestigungsschraube", "木製ダイニングテーブル四人掛け"


@pytest.mark.parametrize("cols", [40, 60, 80, 200])
def test_results_break_at_blanks_in_any_window(tmp_path: Path, cols: int) -> None:
    runs = [COMPOUND, JAPANESE]
    folder = write_contest(tmp_path / "c", runs=runs, words=(COMPOUND, JAPANESE))
    with ArenaApp(load_config(folder / "furnclip.toml"), rater="anna", runs=runs) as app:
        for choice in "AABTX" * 4:
            app.vote(choice)
        standings = app.standings()
    raw = Person(folder, "stats", cols=cols).rest().replace("\r", "").rpartition("\nvotes: ")[0]
    shown = re.sub(r"\x1b\[[\d;]*m", "", raw)
    assert max(map(cell_len, shown.splitlines())) <= cols
    sentences, words = " ".join(shown.split()), set(re.split(r"[\s:]+", shown))
    for duel in standings.duels:
        assert " ".join(duel_lines(duel)) in sentences
    for table in tables(standings):
        assert " ".join(table.note.split()) in sentences
        cells = [*table.columns, *itertools.chain(*table.rows)]
        wanted = {
            word for cell in cells for word in re.findall(r"[a-z]+", str(cell)) if word in str(cell).split()
        }
        assert wanted <= words


@pytest.mark.parametrize("cols", [40, 60, 80, 200])
def test_a_query_is_shown_whole_in_any_window(cols: int) -> None:
    for text in ("black shirt " * 11, f"Ein {COMPOUND} aus {COMPOUND} für {COMPOUND}", JAPANESE * 4):
        view = View(JudgedQuery("q", "text", text.strip()), ((), ()), rater="anna", votes=0, left=1)
        lines = compose(view, Window(cols, 24), color=False).lines
        assert max(map(cell_len, lines)) <= cols
        assert "".join(text.split()) in "".join("".join(lines).split())
    endless = replace(view, query=JudgedQuery("q", "text", "chair " * 1000))
    assert compose(endless, Window(cols, 24), color=False).usable  # or it could not even be skipped

"""The journal keeps what it acknowledged, whatever is cut; files are replaced whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furnclip.errors import InputError, JournalError
from furnclip.journal import (
    Journal,
    aside_name,
    encode_event,
    journal_lines,
    keep_copy,
    read_journal,
    read_json,
    read_text,
    replacing,
    replacing_folder,
    sweep,
    write_json,
    write_text,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
events = st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=6)


@given(events)
def test_events_come_back_as_they_went_in(written: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl") as journal:
        for event in written:
            journal.append(event)
        assert list(read_journal(journal.path)) == written


@given(events, st.data())
def test_a_cut_anywhere_loses_only_what_was_not_acknowledged(
    written: list[dict[str, object]], data: st.DataObject
) -> None:
    content = b"".join(map(encode_event, written))
    cut = data.draw(st.integers(0, len(content)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_bytes(content[:cut])
        kept = content[:cut].count(b"\n")
        assert list(read_journal(path)) == written[:kept]
        with Journal(path) as journal:
            journal.append({"after": "the cut"})
        assert list(read_journal(path)) == [*written[:kept], {"after": "the cut"}]


def test_a_torn_line_longer_than_a_chunk_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encode_event({"kept": 1}) + b'{"torn": "' + b"x" * 200_000)
    with Journal(path) as journal:
        journal.append({"next": 2})
    assert list(read_journal(path)) == [{"kept": 1}, {"next": 2}]


@pytest.mark.parametrize("line", [b"not json", b"[1, 2]", b"\xff\xfe"])
def test_damage_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encode_event({"a": 1}) + line + b"\n" + encode_event({"b": 2}))
    with pytest.raises(JournalError, match="line 2 of"):
        list(read_journal(path))


def test_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = (
        "import sys; from pathlib import Path; from furnclip.journal import Journal\n"
        "try:\n    Journal(Path(sys.argv[1])).__enter__()\nexcept Exception as e: sys.exit(str(e))"
    )
    with Journal(path):
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
        )
    assert "in use by another furnclip process" in done.stderr


def test_acknowledged_events_survive_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = (
        "import sys; from pathlib import Path; from furnclip.journal import Journal\n"
        "with Journal(Path(sys.argv[1])) as j:\n"
        "    for n in range(10**6):\n"
        "        j.append({'n': n}); print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in process.stdout.read().split()]
    numbers = [event["n"] for event in read_journal(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= len(acknowledged)


def test_replacing_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"old": True})

    def fail_halfway() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert json.loads(path.read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_replacing_folder_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("first", "second"):
        with replacing_folder(path) as aside:
            (aside / "deep").mkdir()
            (aside / "deep" / content).write_text(content)
    assert [p.name for p in (path / "deep").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kept_copy_stays_what_it_was(tmp_path: Path) -> None:
    source, kept = tmp_path / "a", tmp_path / "b"
    write_text(source, "first")
    keep_copy(source, kept)
    write_text(source, "second")
    assert kept.read_text() == "first"
    keep_copy(source, kept)
    assert kept.read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@dataclass(frozen=True)
class Card:
    name: str
    steps: int
    splits: dict[str, int]


DAMAGED = {
    "cut": ('{"name": "a", "steps"', "damaged"),
    "wrong type": ('{"name": "a", "steps": "3", "splits": {}}', "`steps`"),
    "null": ('{"name": "a", "steps": 3, "splits": null}', "`splits`"),
    "inner type": ('{"name": "a", "steps": 3, "splits": {"train": []}}', "`splits.train`"),
    "missing field": ('{"name": "a", "steps": 3}', "`splits`"),
    "another kind": ("[1, 2]", "damaged"),
    "deep": ("[" * 100_000, "damaged"),
    "empty": ("", "damaged"),
    "not text": (b"\xff\xfe\x00", "UTF-8"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_an_error_with_its_name_and_field(case: str, tmp_path: Path) -> None:
    content, expected = DAMAGED[case]
    path = tmp_path / "run.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_json(path, Card, what="the run card", hint="train again")
    assert expected in caught.value.message
    assert "run.json" in caught.value.message
    assert caught.value.hint == "train again"


def test_a_good_file_is_read_as_what_it_is(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"name": "a", "steps": 3, "splits": {"train": 2}, "added later": 1})
    card = read_json(tmp_path / "run.json", Card, what="the run card", hint="train again")
    assert card == Card("a", 3, {"train": 2})


@pytest.mark.parametrize("step", range(8))
def test_a_folder_is_replaced_after_an_interrupt_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Ctrl-C at any of its steps leaves the old folder or the new one, and the next replacement works."""
    path = tmp_path / "checkpoint"

    def replace(content: str) -> None:
        with replacing_folder(path) as aside:
            (aside / "state").write_text(content)

    replace("first")
    steps = iter(range(100))

    def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                raise KeyboardInterrupt
            return function(*args, **options)

        return stepped

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stepping(shutil.rmtree))
        for name in ("replace", "mkdir", "exists"):
            patch.setattr(Path, name, stepping(getattr(Path, name)))
        with suppress(KeyboardInterrupt):
            replace("second")
    replace("third")
    assert (path / "state").read_text() == "third"
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_or_a_folder_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(InputError, match=f"{name}` is not a regular file"):
            read_text(tmp_path / name, what="the file", hint="-")
        with pytest.raises(InputError, match=f"{name}` is not a regular file"):
            list(read_journal(tmp_path / name))
    with pytest.raises(InputError, match="fifo` is not a regular file"), Journal(tmp_path / "fifo"):
        pass


def test_a_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    mine = aside_name(tmp_path / "mine.csv")
    dead = mine.with_name(
        aside_name(tmp_path / "dead.csv").name.replace(f"-{os.getpid()}.", f"-{child.pid}.")
    )
    dead_folder = dead.with_name(dead.name.replace("dead.csv", "folder"))
    moved_away = dead.with_name(dead.name.replace("dead.csv", "checkpoint").replace(".part", ".old"))
    elsewhere = tmp_path / f".far.csv.00000000-{child.pid}.part"
    for path in (mine, dead, elsewhere, tmp_path / ".user.part"):
        path.write_text("half")
    for folder in (dead_folder, moved_away):
        folder.mkdir()
        (folder / "file").write_text("whole")
    sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {mine.name, elsewhere.name, ".user.part", "checkpoint"}
    assert (tmp_path / "checkpoint/file").read_text() == "whole"


@given(events, st.data())
def test_a_line_that_lacks_only_its_newline_counts_where_people_edit(
    written: list[dict[str, object]], data: st.DataObject
) -> None:
    lines = [encode_event(event) for event in written]
    cut = data.draw(st.integers(0, sum(map(len, lines))))
    kept = [event for number, event in enumerate(written) if sum(map(len, lines[: number + 1])) - 1 <= cut]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.jsonl"
        path.write_bytes(b"".join(lines)[:cut])
        assert [json.loads(line) for _, line in journal_lines(path, keep_whole_tail=True)] == kept
        with Journal(path, keep_whole_tail=True) as journal:
            journal.append({"after": "the cut"})
        assert list(read_journal(path)) == [*kept, {"after": "the cut"}]

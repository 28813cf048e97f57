"""The journal keeps what it acknowledged, whatever is cut; files are replaced whole or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furnclip.errors import JournalError
from furnclip.journal import (
    Journal,
    encode_event,
    keep_copy,
    read_journal,
    replacing,
    replacing_folder,
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
        assert list(journal.events()) == written


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

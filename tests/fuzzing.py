"""A shop after every command, and commands run on damaged copies of it.

Eight damaged versions of each file, ten thousand in all with FURNCLIP_FULL=1. A failure names the file,
the seed and the command; `SEED=17 pytest tests/test_fuzz_files.py -k NAME` runs that one version alone.
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from click.testing import Result

from tests.conftest import invoke as furnclip
from tests.drawn_shop import rows, write_shop

PRODUCTS = 24
HANG_S = 60
KINDS = 23
"""How many kinds of file the two test files damage: they share the ten thousand versions."""
CLEAN = ("clean", "run", "--json")
Mutation = Callable[[bytes, Random], bytes]


def finish_shop(folder: Path, model: Path) -> Path:
    """A shop after every command, with its catalogue in every format."""
    write_shop(folder, products=PRODUCTS, model=model)
    with (folder / "furnclip.toml").open("a") as file:
        file.write("\n[train]\nscenario = 'linear_probe'\nepochs = 2\n")
        file.write("effective_batch_size = 6\nmicro_batch_size = 6\n")
    (folder / ".env").write_text("OPENAI_API_KEY=sk-test\nFURNCLIP_TRAIN__EPOCHS=2\nAWS_REGION=eu-west-1\n")
    write_feeds(folder)
    for words in (CLEAN, ("prepare",), ("train", "--run", "probe"), ("embed",)):
        done = invoke(folder, words)
        assert done.exit_code == 0, done.output
    return folder


def write_feeds(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = rows(PRODUCTS)
    raw = (folder / "products.csv").read_bytes()
    (folder / "products.tsv").write_bytes(raw.replace(b",", b"\t").replace(b'"', b""))
    (folder / "products.csv.gz").write_bytes(gzip.compress(raw, mtime=0))
    (folder / "products.json").write_text(json.dumps(table))
    (folder / "products.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "products.parquet")


def invoke(folder: Path, words: tuple[str, ...], **variables: str) -> Result:
    return furnclip(*words, "--config", folder / "furnclip.toml", env=variables)


def versions() -> range:
    """The seeds of one file's damaged versions."""
    if chosen := os.environ.get("SEED"):
        return range(int(chosen), int(chosen) + 1)
    every = -(-10_000 // KINDS)
    return range(every if os.environ.get("FURNCLIP_FULL") else int(os.environ.get("VERSIONS", "8")))


def damage(path: Path, mutations: tuple[Mutation, ...], random: Random) -> bytes:
    """Replace the file by a damaged version; its bytes."""
    changed = random.choice(mutations)(path.read_bytes(), random)
    path.write_bytes(changed)
    return changed


@contextmanager
def no_hang(what: str) -> Iterator[None]:
    """Ends the test process with all stacks where a command neither answers nor refuses."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def run(folder: Path, words: tuple[str, ...], what: str, **variables: str) -> Result:
    """The command on a damaged shop: it may refuse, in the two lines of an error, and nothing else."""
    with no_hang(what):
        done = invoke(folder, words, **variables)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"{what}: `furnclip {' '.join(words)}`") from done.exception
    assert done.exit_code in (0, 1, 2), f"{what}: exit {done.exit_code}"
    assert "Traceback" not in done.output, f"{what}: {done.output}"
    if done.exit_code == 2 or (done.exit_code == 1 and "--json" not in words):
        assert "error:" in done.output or "Usage" in done.output, f"{what}: {done.output}"
    return done

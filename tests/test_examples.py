"""The examples run: the notebook cell by cell, the scripts as far as they can without a GPU or network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import run_here

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_cell_of_the_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "data_exploration.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "commit the notebook without outputs"
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(cells)],
        cwd=tmp_path,
        env={
            **os.environ,
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": str(tmp_path),
            "PYTHONPATH": str(EXAMPLES),  # where Jupyter starts
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "object_type" in done.stdout


def test_a_tiny_clip_is_made_of_any_catalogue_that_init_reads(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("Sku,Produktname,Bild\n1,Roter Stuhl,a.jpg\n2,Blaues Sofa,b.jpg\n")
    script = [sys.executable, str(EXAMPLES / "make_tiny_clip.py"), str(tmp_path), "--layers", "1"]
    early = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (early.returncode, "hint: run `furnclip init`" in early.stderr) == (1, True), early.stderr
    run_here("init", "products.csv", cwd=tmp_path).ok()
    subprocess.run(script, check=True)
    merges = json.loads((tmp_path / "tiny-clip" / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    assert merges  # of letters that stand together in two titles or captions

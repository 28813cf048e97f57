"""The examples run: the notebook cell by cell, the scripts as far as they can without a GPU or network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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

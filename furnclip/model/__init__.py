"""CLIP and SigLIP behind one door: load, encode to unit vectors, adapt, merge, save.

`load_clip` takes a hub id, a folder, a run's name or `furnclip-tiny` and gives a `Clip`, whose
`encode_images` and `encode_texts` return unit vectors in float32 whatever the precision of the towers.

The same towers run without torch from the ONNX files that `onnx` writes and `export` checks: `light`. So that
it can be imported alone, the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from furnclip.model.clip import Clip as Clip
    from furnclip.model.light import BUNDLED as BUNDLED
    from furnclip.model.loading import load_clip as load_clip
    from furnclip.runs import latest_run as latest_run

_HOMES = {
    "BUNDLED": "furnclip.model.light",
    "Clip": "furnclip.model.clip",
    "latest_run": "furnclip.runs",
    "load_clip": "furnclip.model.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'furnclip.model' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

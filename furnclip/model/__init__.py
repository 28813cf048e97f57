"""CLIP and SigLIP behind one door: load, encode to unit vectors, adapt, merge, save.

`load_clip` takes a hub id, a folder, a run's name or `furnclip-tiny` and gives a `Clip`, whose
`encode_images` and `encode_texts` return unit vectors in float32 whatever the precision of the towers.
"""

from furnclip.model.clip import Clip
from furnclip.model.loading import BUNDLED, load_clip
from furnclip.runs import latest_run

__all__ = ["BUNDLED", "Clip", "latest_run", "load_clip"]

"""CLIP and SigLIP behind one door: load, encode to unit vectors, adapt, merge, save.

`loading.load_clip` takes a hub id, a folder, a run's name or `furnclip-tiny` and gives a `clip.Clip`, whose
`encode_images` and `encode_texts` return unit vectors in float32 whatever the precision of the towers.

The same towers run without torch from the ONNX files that `onnx` writes and `export` checks: `light`.
"""

"""CLIP and SigLIP behind one door: load, encode to unit vectors, adapt, merge, save.

`loading.load_clip` gives a `clip.Clip` by name; the same towers run without torch from ONNX files: `light`.
"""

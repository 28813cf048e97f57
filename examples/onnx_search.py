"""Which pictures fit a text best: the files of `furnclip export --onnx FOLDER`, without furnclip or torch.

python examples/onnx_search.py FOLDER "a red chair" images/*.jpg
"""

import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

folder, text, paths = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # `<|endoftext|>` in a title is text
words = " ".join(unicodedata.normalize("NFC", text).lower().split())
token_ids = np.array([tokenizer.encode(words).ids])  # (1, T)
side = json.loads((folder / "preprocessor_config.json").read_text())["crop_size"]["height"]
photos = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]
squares = [ImageOps.pad(photo, (side, side), Image.Resampling.BICUBIC, "white") for photo in photos]
pixels = np.stack([np.asarray(square) for square in squares])  # (N, side, side, 3) bytes
(asked,) = onnxruntime.InferenceSession(folder / "text.onnx").run(None, {"token_ids": token_ids})
(shown,) = onnxruntime.InferenceSession(folder / "vision.onnx").run(None, {"pixels": pixels})
for score, path in sorted(zip(shown @ asked[0], paths, strict=True), reverse=True):
    print(f"{score:.4f} {path}")

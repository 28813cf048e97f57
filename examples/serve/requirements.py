"""What furnclip needs to search and to serve, without torch, as lines for `pip install -r`.

    pip install --no-deps furnclip
    python examples/serve/requirements.py > requirements.txt
    pip install --no-warn-conflicts -r requirements.txt

Read from the installed furnclip, so it fits. An extra can only add to what `pip install furnclip` brings.
"""

import re
from importlib.metadata import requires

# For cleaning, preparing, training and embedding; tests/test_light.py searches without them.
LEFT_OUT = {
    *("torch", "transformers", "peft", "safetensors", "huggingface-hub", "onnx"),
    *("openai", "charset-normalizer", "pycurl"),
}

for line in requires("furnclip") or []:
    needed, _, condition = (part.strip() for part in line.partition(";"))
    name = re.split(r"[^\w.-]", needed)[0].lower().replace("_", "-")
    extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
    if name not in LEFT_OUT and (extra is None or extra[1] == "serve"):
        print(needed if extra or not condition else f"{needed}; {condition}")

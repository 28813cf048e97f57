"""The words that a cleaned product may be described with, unless `furnclip.toml` names others.

`unknown` is always allowed besides. Short lists keep the request cheap and the answers comparable.
"""

from __future__ import annotations

# fmt: off
STYLES = (
    "modern", "contemporary", "mid-century modern", "scandinavian", "industrial", "traditional", "rustic",
    "farmhouse", "bohemian", "art deco", "coastal", "minimalist", "vintage", "asian",
)
MATERIALS = (
    "wood", "metal", "glass", "fabric", "leather", "velvet", "rattan", "bamboo", "plastic", "marble", "stone",
    "ceramic", "concrete", "paper", "wool", "plant",
)
COLORS = (
    "white", "black", "gray", "brown", "beige", "red", "orange", "yellow", "green", "blue", "purple", "pink",
    "gold", "silver", "clear", "multicolor",
)
OBJECT_TYPES = (
    "sofa", "armchair", "chair", "office chair", "stool", "bench", "ottoman", "table", "coffee table",
    "side table", "dining table", "console table", "desk", "bed", "crib", "mattress", "nightstand", "dresser",
    "wardrobe", "cabinet", "sideboard", "tv stand", "bookcase", "shelf", "vanity", "rack", "lamp",
    "ceiling light", "wall light", "rug", "curtain", "mirror", "picture", "clock", "vase", "plant", "candle",
    "cushion", "blanket", "fireplace", "sink", "toilet", "bathtub", "shower", "refrigerator", "oven",
    "dishwasher", "washing machine", "range hood", "microwave", "radiator", "television", "electronics",
    "kitchenware", "storage box", "trash can", "door", "window", "stairs", "fence", "swing", "umbrella",
    "pool", "grill", "toy", "sports equipment", "musical instrument", "tool", "clothing",
    "electrical fitting", "other",
)
# fmt: on

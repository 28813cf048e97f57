"""The pieces of furniture that can be drawn, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..solids import Mesh
from . import accents, cabinets, seats, tables
from .design import Design

UPHOLSTERED = ("fabric", "velvet", "leather")


@dataclass(frozen=True)
class Kind:
    """A kind of furniture: how it is built, what it may be made of, what shops call it."""

    build: Callable[[Mesh, Design], None]
    object_type: str
    materials: tuple[str, ...]
    names: tuple[str, ...]
    foreign: dict[str, str]


KINDS: dict[str, Kind] = {
    "chair": Kind(
        seats.chair,
        "chair",
        ("wood", "wood", "wood", "fabric", "velvet", "leather", "plastic", "rattan"),
        ("chair", "dining chair", "side chair"),
        {"de": "Stuhl", "fr": "chaise", "es": "silla"},
    ),
    "armchair": Kind(
        seats.armchair,
        "armchair",
        UPHOLSTERED,
        ("armchair", "accent chair", "lounge chair"),
        {"de": "Sessel", "fr": "fauteuil", "es": "sillón"},
    ),
    "office chair": Kind(
        seats.office_chair,
        "office chair",
        ("fabric", "leather"),
        ("office chair", "desk chair", "swivel chair"),
        {"de": "Bürostuhl", "fr": "chaise de bureau"},
    ),
    "stool": Kind(
        seats.stool,
        "stool",
        ("wood", "wood", "metal", "fabric", "leather", "velvet"),
        ("stool", "low stool"),
        {"de": "Hocker", "fr": "tabouret"},
    ),
    "bar stool": Kind(
        seats.bar_stool,
        "stool",
        ("wood", "metal", "leather", "velvet", "fabric"),
        ("bar stool", "counter stool"),
        {"de": "Barhocker", "fr": "tabouret de bar"},
    ),
    "ottoman": Kind(
        seats.ottoman, "ottoman", UPHOLSTERED, ("ottoman", "pouf", "footstool"), {"de": "Polsterhocker"}
    ),
    "sofa": Kind(
        seats.sofa, "sofa", UPHOLSTERED, ("sofa", "couch"), {"de": "Sofa", "fr": "canapé", "es": "sofá"}
    ),
    "bench": Kind(
        seats.bench,
        "bench",
        ("wood", "wood", "fabric", "leather"),
        ("bench", "entryway bench"),
        {"de": "Sitzbank", "fr": "banc"},
    ),
    "bed": Kind(
        seats.bed,
        "bed",
        ("wood", "wood", "fabric", "velvet"),
        ("bed", "bed frame", "platform bed"),
        {"de": "Bett", "fr": "lit", "es": "cama"},
    ),
    "dining table": Kind(
        tables.dining_table,
        "dining table",
        ("wood", "wood", "wood", "glass", "marble"),
        ("dining table", "kitchen table"),
        {"de": "Esstisch", "fr": "table à manger"},
    ),
    "coffee table": Kind(
        tables.coffee_table,
        "coffee table",
        ("wood", "wood", "wood", "glass", "marble"),
        ("coffee table", "cocktail table"),
        {"de": "Couchtisch", "fr": "table basse"},
    ),
    "side table": Kind(
        tables.side_table,
        "side table",
        ("wood", "wood", "metal", "marble", "glass"),
        ("side table", "end table", "accent table"),
        {"de": "Beistelltisch"},
    ),
    "desk": Kind(
        tables.desk,
        "desk",
        ("wood",),
        ("desk", "writing desk", "computer desk"),
        {"de": "Schreibtisch", "fr": "bureau"},
    ),
    "nightstand": Kind(
        cabinets.nightstand,
        "nightstand",
        ("wood",),
        ("nightstand", "bedside table"),
        {"de": "Nachttisch", "fr": "table de chevet"},
    ),
    "dresser": Kind(
        cabinets.dresser,
        "dresser",
        ("wood",),
        ("dresser", "chest of drawers"),
        {"de": "Kommode", "fr": "commode"},
    ),
    "wardrobe": Kind(
        cabinets.wardrobe,
        "wardrobe",
        ("wood",),
        ("wardrobe", "armoire"),
        {"de": "Kleiderschrank", "es": "armario"},
    ),
    "bookshelf": Kind(
        cabinets.bookshelf,
        "bookcase",
        ("wood",),
        ("bookshelf", "bookcase"),
        {"de": "Bücherregal", "fr": "bibliothèque"},
    ),
    "sideboard": Kind(
        cabinets.sideboard, "sideboard", ("wood",), ("sideboard", "buffet", "credenza"), {"de": "Anrichte"}
    ),
    "tv stand": Kind(
        cabinets.tv_stand,
        "tv stand",
        ("wood",),
        ("TV stand", "media console"),
        {"de": "TV-Schrank", "fr": "meuble TV"},
    ),
    "floor lamp": Kind(
        accents.floor_lamp,
        "lamp",
        ("metal", "metal", "wood"),
        ("floor lamp", "standing lamp"),
        {"de": "Stehlampe"},
    ),
    "table lamp": Kind(
        accents.table_lamp,
        "lamp",
        ("ceramic", "metal", "wood", "marble"),
        ("table lamp", "bedside lamp"),
        {"de": "Tischlampe", "fr": "lampe de table"},
    ),
    "mirror": Kind(
        accents.mirror,
        "mirror",
        ("wood", "metal", "metal", "rattan"),
        ("mirror", "wall mirror"),
        {"de": "Spiegel", "fr": "miroir"},
    ),
    "rug": Kind(
        accents.rug,
        "rug",
        ("wool", "fabric"),
        ("rug", "area rug", "carpet"),
        {"de": "Teppich", "fr": "tapis"},
    ),
}

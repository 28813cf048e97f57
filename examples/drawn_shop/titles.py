"""What a shop writes above an image: the true title, and the mess that is made of it.

The mess is what real catalogues are full of: brands, article numbers, prices, shipping, set sizes,
sizes in two units, capitals, typing errors, wrong colors, and now and then another language.
"""

from __future__ import annotations

from .looks import COLORS
from .pieces import KINDS
from .pieces.design import Design, Dice

BRANDS = (
    "Havenwood",
    "Nordhus",
    "Casa Lumi",
    "Brixley & Co",
    "OAKRIDGE",
    "Vellano",
    "Fjordby",
    "Maison Perle",
)
_FLUFF = (
    "Luxury",
    "Premium",
    "Stylish",
    "Elegant",
    "Best Seller",
    "NEW",
    "Hot Sale!",
    "Easy Assembly",
    "Sturdy",
)
_ROOMS = (
    "for Living Room",
    "for Bedroom",
    "Home Office",
    "for Small Spaces",
    "Hallway",
    "Indoor",
    "Apartment",
)
_TAILS = ("FREE SHIPPING", "Ships Today", "2-Day Delivery", "30% OFF", "Limited Stock", "(Assembly Required)")
_IN_SETS = ("chair", "stool", "bar stool", "nightstand", "table lamp")
# In the order of `_TRANSLATED`; what is not in it keeps its English name or is left out.
_TRANSLATED = ("black", "white", "gray", "brown", "green", "blue", "red", "yellow", "pink", "purple")
_FOREIGN_COLORS = {
    "de": ("schwarz", "weiß", "grau", "braun", "grün", "blau", "rot", "gelb", "rosa", "lila"),
    "fr": ("noir", "blanc", "gris", "marron", "vert", "bleu", "rouge", "jaune", "rose", "violet"),
    "es": ("negro", "blanco", "gris", "marrón", "verde", "azul", "rojo", "amarillo", "rosa", "morado"),
}

# Names of colors that are in no dictionary, as many shops have them.
_OWN_SHADES = {
    "red": "Karmosa",
    "green": "Tarnby",
    "blue": "Fjarn",
}


def true_title(design: Design) -> str:
    """The title an honest, tidy shop would print."""
    wood = next((detail[: -len(" finish")] for detail in design.details if detail.endswith(" finish")), "")
    material = wood if wood else design.material
    color = "" if wood else design.color
    name = KINDS[design.kind].names[0]
    before = [
        detail
        for detail in design.details
        if not detail.startswith("with ") and not detail.endswith("finish")
    ]
    after = [detail for detail in design.details if detail.startswith("with ")]
    words = [design.style, color, *before[:2], material, name, *after[:1]]
    return _capitalised(" ".join(word for word in words if word))


def messy_title(design: Design, dice: Dice, number: int, *, own_words: bool = False) -> str:
    """The same product as the shop's feed has it; with `own_words`, some colors by its own names."""
    foreign = KINDS[design.kind].foreign
    if foreign and dice.chance(0.05):
        return _foreign_title(design, dice, dice.pick(tuple(foreign)))
    title = _noise_around(_told(design, dice, own_words=own_words), design, dice, number)
    if dice.chance(0.1):
        title = _mistyped(title, dice)
    if dice.chance(0.08):
        title = title.upper()
    elif dice.chance(0.06):
        title = title.lower()
    return title


def _told(design: Design, dice: Dice, *, own_words: bool) -> str:
    """The words that describe the product, some left out, some wrong."""
    wood = [detail[: -len(" finish")] for detail in design.details if detail.endswith(" finish")]
    color = _color_word(design, dice, own_words=own_words)
    if wood and dice.chance(0.75):
        color = ""
    material = wood[0] if wood and dice.chance(0.7) else design.material
    others = [detail for detail in design.details if not detail.endswith(" finish")]
    words = [
        design.style if dice.chance(0.72) else "",
        color if dice.chance(0.85) else "",
        material if dice.chance(0.8) else "",
        dice.pick(KINDS[design.kind].names),
        " ".join(others[:2]) if dice.chance(0.6) else "",
    ]
    if dice.chance(0.2):
        words = [words[3], words[4], "-", words[0], words[2], words[1]]
    return _capitalised(" ".join(word for word in words if word))


def _color_word(design: Design, dice: Dice, *, own_words: bool) -> str:
    """What the shop calls the color, now and then a wrong one."""
    color = design.color
    word = dice.pick(COLORS[color][0]) if color in COLORS else color
    if dice.chance(0.05):
        color = word = dice.pick(tuple(COLORS))
    return _OWN_SHADES.get(color, word) if own_words else word


def _noise_around(told: str, design: Design, dice: Dice, number: int) -> str:
    parts = [told]
    if dice.chance(0.3):
        parts.insert(0, dice.pick(_FLUFF))
    if design.kind in _IN_SETS and dice.chance(0.3):
        size = dice.count(2, 6)
        parts.insert(0, f"Set of {size}") if dice.chance(0.6) else parts.append(f"({size} pcs)")
    if dice.chance(0.5):
        parts.insert(0, dice.pick(BRANDS))
    if dice.chance(0.3):
        parts.append(dice.pick(_ROOMS))
    if dice.chance(0.25):
        parts.append(_size(dice))
    if dice.chance(0.35):
        parts.append(f"{dice.pick(('SKU', 'Art.', 'Item', '#'))} {sku(number)}")
    if dice.chance(0.15):
        parts.append(f"${dice.count(39, 1899)}.99")
    if dice.chance(0.2):
        parts.append(dice.pick(_TAILS))
    return dice.pick((" ", " ", ", ", " - ", " | ")).join(parts)


def _size(dice: Dice) -> str:
    if dice.chance(0.5):
        return f'{dice.count(15, 79)}.{dice.count(0, 9)}"W x {dice.count(10, 40)}"D'
    return f"{dice.count(40, 200)} x {dice.count(25, 100)} cm"


def sku(number: int) -> str:
    """An article number as shops make them."""
    return f"FC-{(number * 7919) % 90000 + 10000}{'ABCDEFGHJK'[number % 10]}"


def _foreign_title(design: Design, dice: Dice, language: str) -> str:
    colors = dict(zip(_TRANSLATED, _FOREIGN_COLORS[language], strict=True))
    color = colors.get(design.color, "")
    return f"{dice.pick(BRANDS)} {KINDS[design.kind].foreign[language]} {color}".strip()


def _mistyped(title: str, dice: Dice) -> str:
    """Two neighboring letters swapped, or one lost."""
    at = dice.count(1, max(2, len(title) - 3))
    if dice.chance(0.5):
        return title[:at] + title[at + 1] + title[at] + title[at + 2 :]
    return title[:at] + title[at + 1 :]


def _capitalised(text: str) -> str:
    small = ("with", "and", "of")
    return " ".join(word if word in small else word[:1].upper() + word[1:] for word in text.split())

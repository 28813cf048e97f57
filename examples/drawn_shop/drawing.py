"""One product: what it is, what it is made of, and its image.

Everything follows from a numpy generator, so product number N of a seed is the same image on every
machine and in any order of drawing.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from . import looks
from .pieces import KINDS
from .pieces.design import Design, Dice, Slot
from .shading import Finish, Painter, Rgb, Room
from .solids import Mesh
from .view import Camera, Geometry, paint, sunlight

DRAWING_STYLES = ("studio", "room", "loft", "dusk", "ink")
_OVERSAMPLING = 4 / 3  # pixels drawn for one pixel delivered, along each side
_FAMILY_EVERY = 8
_SOFT = ("fabric", "velvet", "leather", "rattan")
_LAMPLIGHT = (1.0, 0.87, 0.69)  # of white paper
_RUG_TILES = ("border", "diamonds", "stripes", "checks", "rings")


def new_design(seed: int, number: int) -> Design:
    """Product `number` of the shop with this seed: what it is, but not yet its exact shape.

    The last of every eight products is the one before it in other colors.
    """
    shape = Dice(np.random.default_rng([seed, family_of(number), 0]))
    surface = Dice(np.random.default_rng([seed, number, 1]))
    kind, style = shape.pick(tuple(KINDS)), shape.pick(tuple(looks.STYLES))
    traits = looks.STYLES[style]
    options = KINDS[kind].materials
    soft = [option for option in options if option in _SOFT]
    liked = [option for option in soft if option in traits.upholstery or kind in ("rug", "mirror")]
    hard = [option for option in options if option not in _SOFT]
    material = shape.pick((liked + hard) or options)
    return Design(kind, style, traits, material, shape.pick(traits.legs), shape, surface)


def family_of(number: int) -> int:
    """The first product of the same shape."""
    return number - 1 if number % _FAMILY_EVERY == _FAMILY_EVERY - 1 else number


def build(design: Design) -> tuple[Mesh, list[Finish]]:
    """The solids of the piece and a finish for every slot; fills in the design's color and details."""
    finishes = _finishes(design)
    mesh = Mesh()
    KINDS[design.kind].build(mesh, design)
    return mesh, finishes


def _finishes(design: Design) -> list[Finish]:
    generator = design.surface.generator
    trim = looks.metal(design.traits.metal)
    frame = looks.wood(_frame_wood(design), generator)
    accent = looks.COLORS[design.surface.pick(tuple(looks.COLORS))][1]
    table: dict[Slot, Finish] = {
        Slot.TRIM: trim,
        Slot.FRAME: frame,
        Slot.SOFT: looks.cloth("fabric", looks.jitter(accent, generator)),
        Slot.DARK: Finish((0.12, 0.12, 0.13), (0.12, 0.12, 0.13), gloss=0.5),
        Slot.PALE: Finish((0.93, 0.92, 0.90), (0.86, 0.85, 0.82), "mottled", 0.6, gloss=0.1),
        Slot.GLASS: looks.glass(),
        Slot.GREEN: Finish((0.24, 0.46, 0.22), (0.38, 0.60, 0.30), "mottled", 0.1),
        Slot.RED: Finish((0.66, 0.22, 0.18), (0.66, 0.22, 0.18)),
        Slot.BLUE: Finish((0.20, 0.32, 0.50), (0.20, 0.32, 0.50), gloss=0.3),
        Slot.SAND: Finish((0.92, 0.80, 0.58), (0.86, 0.72, 0.48), glow=0.2),
        Slot.PICTURE: Finish((0.95, 0.94, 0.90), looks.jitter(accent, generator), "picture"),
        Slot.INNER: Finish((0.30, 0.25, 0.21), (0.24, 0.20, 0.17), "wood", 0.5, 3.0),
    }
    table[Slot.BODY], design.color = _body(design)
    if design.material in ("wood", "metal"):
        table[Slot.FRAME] = table[Slot.BODY]
    if "cane" in (*design.traits.fronts, *design.traits.backs):
        table[Slot.SOFT] = looks.cloth("rattan", looks.WOODS["rattan"][1])
    _special_slots(design, table)
    return [table[slot] for slot in Slot]


def _special_slots(design: Design, table: dict[Slot, Finish]) -> None:
    """What glows, reflects or shows a framed picture."""
    if "lamp" in design.kind:
        linen = looks.cloth("fabric", (0.93, 0.86, 0.70))
        table[Slot.SOFT] = looks.glowing(linen, design.surface.between(0.15, 0.4))
    elif design.kind == "mirror":
        table[Slot.GLASS] = looks.mirror_glass()
    elif design.kind == "tv stand":
        table[Slot.GLASS] = Finish((0.10, 0.14, 0.22), (0.35, 0.50, 0.66), "streaks", glow=0.2)
    elif design.kind == "bed" and design.material == "wood":
        shade = looks.COLORS[design.surface.pick(design.traits.colors)][1]
        table[Slot.SOFT] = looks.cloth("fabric", looks.jitter(shade, design.surface.generator))


def _frame_wood(design: Design) -> str:
    dark = design.surface.pick(("walnut", "oak"))
    real = [name for name in design.traits.woods if name not in looks.PAINTED_WOODS and name != "rattan"]
    return design.surface.pick(tuple(real)) if real else dark


def _body(design: Design) -> tuple[Finish, str]:
    generator, material = design.surface.generator, design.material
    if material == "wood":
        options = tuple(name for name in design.traits.woods if name != "rattan")
        name = design.surface.pick(options or ("oak",))
        if name not in looks.PAINTED_WOODS:
            design.add_detail(f"{name} finish")
        return looks.wood(name, generator), looks.WOODS[name][0]
    if material == "metal":
        name = design.surface.pick(
            (design.traits.metal, design.traits.metal, "black", "brass", "silver", "copper")
        )
        return looks.metal(name), looks.METAL_COLORS[name]
    if material == "glass":
        return looks.glass(), "clear"
    if material == "rattan":
        return looks.cloth("rattan", looks.jitter(looks.WOODS["rattan"][1], generator, 0.03)), "beige"
    color = design.surface.pick(design.traits.colors if design.surface.chance(0.6) else tuple(looks.COLORS))
    rgb = looks.jitter(looks.COLORS[color][1], generator, 0.035)
    if material == "marble":
        color = design.surface.pick(("white", "black", "green"))
        return looks.stone(looks.COLORS[color][1]), color
    if material == "leather" and design.surface.chance(0.5):
        color, rgb = "brown", looks.jitter((0.50, 0.28, 0.14), generator, 0.03)
    if design.kind == "rug":
        return _rug(design, color, rgb), color
    if material == "ceramic":
        return Finish(rgb, looks.tinted(rgb, 0.9), "mottled", 0.4, gloss=0.8), color
    return looks.cloth(material, rgb), color


def _rug(design: Design, color: str, rgb: Rgb) -> Finish:
    tile = design.surface.pick(_RUG_TILES)
    names = {
        "border": "medallion",
        "diamonds": "diamond pattern",
        "stripes": "striped",
        "checks": "checkered",
    }
    design.add_detail(names.get(tile, "ring pattern"))
    other = looks.COLORS["white"][1] if color not in ("white", "beige", "yellow") else (0.35, 0.28, 0.24)
    return Finish(rgb, other, tile)


def draw(design: Design, drawing_style: str, *, image_px: int) -> Image.Image:
    """The image of a new design, square, RGB."""
    mesh, finishes = build(design)
    geometry = Geometry.of(mesh)
    side = round(image_px * _OVERSAMPLING)
    camera = _camera(design, geometry, side)
    sun_azimuth = camera_azimuth(camera) + design.surface.sign() * design.surface.between(0.5, 1.1)
    height = design.surface.between(0.75, 1.1)
    direction = np.array(
        [
            math.sin(sun_azimuth) * math.cos(height),
            -math.cos(sun_azimuth) * math.cos(height),
            math.sin(height),
        ]
    )
    sun = sunlight(geometry, direction, side_px=max(96, side * 2 // 3))
    painter = Painter(mesh, geometry, finishes, camera=camera, sun=sun)
    image = painter.picture(paint(geometry, camera), _room(design, drawing_style, geometry))
    return image.resize((image_px, image_px), Image.Resampling.BOX)


def camera_azimuth(camera: Camera) -> float:
    """The side from which the camera looks: 0 is straight from the front."""
    return math.atan2(-camera.axes[2][0], camera.axes[2][1])


def _camera(design: Design, geometry: Geometry, side_px: int) -> Camera:
    lying = design.kind == "rug"
    high_view = design.surface.between(0.55, 0.85) if lying else design.surface.between(0.2, 0.48)
    if design.kind == "mirror":
        high_view = design.surface.between(0.05, 0.2)
    turn = design.surface.between(0.25, 0.8) * design.surface.sign()
    return Camera.framing(
        geometry,
        azimuth=turn * (0.7 if design.kind == "mirror" else 1.0),
        elevation=high_view,
        side_px=side_px,
        fill=design.surface.between(0.66, 0.84),
        shift=np.array([design.surface.between(-0.05, 0.05), design.surface.between(-0.02, 0.06)]),
    )


def _room(design: Design, drawing_style: str, geometry: Geometry) -> Room:
    """The surroundings of a drawing style."""
    behind = float(geometry.high[:, 1].max()) + (
        0.02 if design.kind == "mirror" else design.surface.between(0.08, 0.7)
    )
    generator = design.surface.generator
    tint = looks.COLORS[design.surface.pick(tuple(looks.COLORS))][1]
    if drawing_style == "studio":
        level = design.surface.between(0.86, 1.0) if design.surface.chance(0.6) else 0.0
        color: Rgb = (level, level, level) if level else looks.tinted(tint, 0.45, 0.55)
        return _plain_room(color, None, (0.74, 0.74, 0.75), (0.46, 0.45, 0.43), 0.28)
    if drawing_style == "ink":
        paper = looks.jitter((0.96, 0.93, 0.85), generator, 0.02)
        wash = looks.tinted(tint, 0.35, 0.62)
        floor, wall = Finish(paper, paper), Finish(wash, looks.tinted(wash, 0.96), "mottled", 1.5)
        ambient, sun = (0.78, 0.78, 0.78), (0.42, 0.42, 0.40)
        return Room(floor, wall, behind, ambient, sun, 0.22, ink=True, cast=_LAMPLIGHT)
    plaster = looks.jitter(looks.tinted(tint, 0.5, 0.45), generator, 0.03)
    wood = looks.wood(design.surface.pick(("oak", "walnut", "pine", "ash")), generator)
    boards = Finish(wood.color, wood.second, "planks", 1.4, 1.5)
    if drawing_style == "loft":
        brick = Finish((0.62, 0.34, 0.26), (0.80, 0.76, 0.70), "brick", 1.3)
        concrete = Finish((0.62, 0.61, 0.60), (0.50, 0.50, 0.49), "mottled", 1.6)
        wall = brick if design.surface.chance(0.6) else concrete
        floor = concrete if design.surface.chance(0.5) else boards
        return Room(floor, wall, behind, (0.60, 0.61, 0.64), (0.56, 0.54, 0.50), 0.45)
    if drawing_style == "dusk":
        dark = looks.tinted(plaster, 0.55)
        wall = Finish(dark, looks.tinted(dark, 0.9), "mottled", 1.2)
        return Room(boards, wall, behind, (0.50, 0.48, 0.56), (0.78, 0.62, 0.44), 0.5)
    tiles = Finish((0.85, 0.83, 0.80), (0.66, 0.64, 0.62), "squares", 1.6)
    stripes = Finish(plaster, looks.tinted(plaster, 0.93), "stripes", 0.9)
    flat = Finish(plaster, looks.tinted(plaster, 0.97), "mottled", 1.2)
    floor = boards if design.surface.chance(0.7) else tiles
    return Room(
        floor,
        stripes if design.surface.chance(0.3) else flat,
        behind,
        (0.58, 0.58, 0.60),
        (0.50, 0.48, 0.44),
        0.38,
    )


def _plain_room(color: Rgb, wall_y: float | None, ambient: Rgb, sun: Rgb, shadow: float) -> Room:
    paint_finish = Finish(color, color)
    return Room(paint_finish, paint_finish, wall_y, ambient, sun, shadow)

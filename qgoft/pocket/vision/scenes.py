"""Images for pretraining: scenes with several attributes, each predicted by one head."""

import math

import numpy as np

from qgoft.pocket.vision.draw import (
    COLOURS,
    SIZE,
    TEXTURES,
    Array,
    Random,
    finish,
    ground,
    outline,
    paint,
    scatter,
    shade,
    strokes,
    texture,
)

SHAPES = ("disc", "square", "triangle", "star5", "star4", "star8", "trefoil", "bean", "hexagon", "ellipse")
PATTERNS = TEXTURES[:8]
GLYPHS = 20
# Attribute -> number of values. The outlines and patterns of some downstream tasks are not among them.
ATTRIBUTES = {
    "kind": 3,
    "shape": len(SHAPES),
    "glyph": GLYPHS,
    "pattern": len(PATTERNS),
    "colour": len(COLOURS),
    "count": 6,
    "x": 5,
    "y": 5,
    "angle": 6,
    "size": 4,
}


def _alphabet() -> list[list[tuple[float, float, float, float]]]:
    """Return invented letters of two to four strokes."""
    random = np.random.default_rng(77)
    return [[tuple(random.uniform(-0.9, 0.9, 4)) for _ in range(random.integers(2, 5))] for _ in range(GLYPHS)]


ALPHABET = _alphabet()


def _bin(value: float, low: float, high: float, count: int) -> int:
    return min(count - 1, int((value - low) / (high - low) * count))


def scene(random: Random) -> tuple[Array, list[int]]:
    """Draw an image [SIZE, SIZE, 3] uint8 and its attributes in the order of ATTRIBUTES; -1 if one does not apply."""
    found = dict.fromkeys(ATTRIBUTES, -1)
    found["kind"] = kind = int(random.integers(3))
    draw = (_shapes, _pattern, _glyph)[kind]
    image = draw(random, found)
    return finish(image, random, 0.06), list(found.values())


def _shapes(random: Random, found: dict[str, int]) -> Array:
    image = ground(random)
    found["shape"], found["colour"] = int(random.integers(len(SHAPES))), int(random.integers(len(COLOURS)))
    name, base = SHAPES[found["shape"]], COLOURS[found["colour"]]
    if random.integers(6) == 0:
        x, y = random.uniform(-0.6, 0.6, 2)
        size, angle = random.uniform(0.2, 0.6), random.uniform(0, math.pi)
        found.update(count=0, x=_bin(x, -0.6, 0.6, 5), y=_bin(y, -0.6, 0.6, 5), size=_bin(size, 0.2, 0.6, 4))
        if name == "ellipse":
            found["angle"] = _bin(angle, 0, math.pi, 6)
        return paint(image, outline(name, x, y, size, angle), shade(base, random))
    places = scatter(random, int(random.integers(1, 7)), 0.45, 0.8)
    found["count"] = len(places) - 1
    for x, y in places:
        image = paint(image, outline(name, x, y, random.uniform(0.16, 0.24), random.uniform(0, 2 * math.pi)), shade(base, random))
    return image


def _pattern(random: Random, found: dict[str, int]) -> Array:
    found["pattern"] = int(random.integers(len(PATTERNS)))
    mix = texture(PATTERNS[found["pattern"]], random)[..., None]
    one, two = random.uniform(0, 1, (2, 3))
    return (mix * one + (1 - mix) * two) * np.ones((SIZE, SIZE, 1))


def _glyph(random: Random, found: dict[str, int]) -> Array:
    found["glyph"], found["colour"] = int(random.integers(GLYPHS)), int(random.integers(len(COLOURS)))
    x, y = random.uniform(-0.35, 0.35, 2)
    found.update(x=_bin(x, -0.6, 0.6, 5), y=_bin(y, -0.6, 0.6, 5))
    mask = strokes(
        ALPHABET[found["glyph"]], x, y, random.uniform(0.45, 0.7), random.normal(0, 0.15), random.uniform(0.06, 0.12), 0.05, random
    )
    return paint(ground(random), mask, shade(COLOURS[found["colour"]], random))

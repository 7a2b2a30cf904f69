"""Drawing with numpy: filled outlines, strokes and textures on a square canvas.

Coordinates run from -1 to 1, x to the right and y down; a mask is [SIZE, SIZE] from 0 to 1, an image [SIZE, SIZE, 3] from 0 to 1.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

SIZE = 32
Array = np.ndarray
Random = np.random.Generator
Segment = tuple[float, float, float, float]  # x0, y0, x1, y1

_AXIS = (np.arange(SIZE, dtype=np.float32) / (SIZE - 1)) * 2 - 1
Y, X = np.meshgrid(_AXIS, _AXIS, indexing="ij")

COLOURS = np.array(
    [
        [0.90, 0.15, 0.15],
        [0.15, 0.70, 0.20],
        [0.20, 0.30, 0.95],
        [0.95, 0.85, 0.10],
        [0.85, 0.20, 0.85],
        [0.10, 0.80, 0.85],
        [0.95, 0.55, 0.10],
        [0.95, 0.95, 0.95],
        [0.50, 0.30, 0.15],
        [0.55, 0.55, 0.60],
    ],
    np.float32,
)


def _star(points: int, depth: float) -> Callable[[Array], Array]:
    return lambda angle: 1 - depth * (0.5 + 0.5 * np.cos(points * angle))


def _polygon(sides: int, inner: float) -> Callable[[Array], Array]:
    middles = [2 * math.pi * k / sides for k in range(sides)]
    return lambda angle: inner / np.maximum.reduce([np.cos(angle - middle) for middle in middles])


def _cross(angle: Array) -> Array:
    across, along = np.abs(np.cos(angle)) + 1e-6, np.abs(np.sin(angle)) + 1e-6
    return np.maximum(np.minimum(1 / across, 0.33 / along), np.minimum(1 / along, 0.33 / across))


# Distance of the outline from the centre, by direction.
OUTLINES: dict[str, Callable[[Array], Array]] = {
    "disc": np.ones_like,
    "square": _polygon(4, 0.8),
    "triangle": _polygon(3, 0.5),
    "star5": _star(5, 0.55),
    "star4": _star(4, 0.6),
    "star8": _star(8, 0.35),
    "trefoil": _star(3, 0.5),
    "bean": lambda angle: 0.7 + 0.3 * np.cos(angle),
    "hexagon": _polygon(6, 0.85),
    "ellipse": lambda angle: 1 / np.sqrt(np.cos(angle) ** 2 + 5 * np.sin(angle) ** 2),
    "bar": lambda angle: np.minimum(1 / (np.abs(np.cos(angle)) + 1e-6), 0.3 / (np.abs(np.sin(angle)) + 1e-6)),
    "heart": lambda angle: 0.75 - 0.35 * np.sin(angle) + 0.1 * np.cos(2 * angle),
    "cross": _cross,
    "drop": lambda angle: 0.35 + 0.65 * np.maximum(0, np.cos(angle)) ** 5,
}


def outline(name: str, x: float, y: float, radius: float, angle: float = 0.0) -> Array:
    """Return the mask of a filled shape; also `ring` and `tee`, which are not star-shaped."""
    right, down = X - x, Y - y
    u = (math.cos(angle) * right + math.sin(angle) * down) / radius
    v = (math.cos(angle) * down - math.sin(angle) * right) / radius
    if name == "ring":
        away = np.hypot(u, v)
        inside = np.minimum(1 - away, away - 0.55)
    elif name == "tee":
        inside = np.maximum(np.minimum(1 - np.abs(u), 0.28 - np.abs(v + 0.6)), np.minimum(0.28 - np.abs(u), 0.9 - np.abs(v)))
    else:
        inside = OUTLINES[name](np.arctan2(v, u)) - np.hypot(u, v)
    return _soften(inside * radius)


def strokes(
    segments: Sequence[Segment], x: float, y: float, size: float, angle: float, width: float, shake: float, random: Random
) -> Array:
    """Return the mask of lines with slightly perturbed ends."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    cos, sin = math.cos(angle), math.sin(angle)
    for segment in segments:
        ends = np.array(segment).reshape(2, 2) + random.normal(0, shake, (2, 2))
        (ax, ay), (bx, by) = ((x + 0.8 * size * (cos * px - sin * py), y + 0.8 * size * (sin * px + cos * py)) for px, py in ends)
        along = ((X - ax) * (bx - ax) + (Y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2 + 1e-9)
        along = np.clip(along, 0, 1)
        away = np.hypot(X - ax - along * (bx - ax), Y - ay - along * (by - ay))
        mask = np.maximum(mask, _soften(width - away))
    return mask


def _soften(inside: Array) -> Array:
    """Convert the distance inside the edge to the coverage of a pixel."""
    return np.clip(inside * SIZE / 2 + 0.5, 0, 1).astype(np.float32)


TEXTURES = (
    "upright",
    "level",
    "slanting",
    "checks",
    "dots",
    "rings",
    "grain",
    "blocks",
    "waves",
    "grid",
    "rays",
    "steps",
)


def texture(name: str, random: Random) -> Array:
    """Return a pattern from 0 to 1 with random frequency, phase and a slight rotation."""
    pitch, turn = random.uniform(4, 7), random.uniform(-0.25, 0.25)
    p, q = random.uniform(0, 2 * math.pi, 2)
    u, v = X * math.cos(turn) + Y * math.sin(turn), Y * math.cos(turn) - X * math.sin(turn)
    away_x, away_y = X - p / 9 + 0.3, Y - q / 9 + 0.3

    def swing(phase: Array) -> Array:
        return np.sin(phase) * 0.5 + 0.5

    patterns: dict[str, Callable[[], Array]] = {
        "upright": lambda: swing(2 * pitch * u + p),
        "level": lambda: swing(2 * pitch * v + p),
        "slanting": lambda: swing(1.5 * pitch * (u + v) + p),
        "checks": lambda: (np.sin(1.7 * pitch * u + p) > 0) ^ (np.sin(1.7 * pitch * v + q) > 0),
        "dots": lambda: swing(2 * pitch * u + p) * swing(2 * pitch * v + q),
        "rings": lambda: swing(2.2 * pitch * np.hypot(away_x, away_y)),
        "grain": lambda: random.random((SIZE, SIZE)),
        "blocks": lambda: np.kron(random.random((SIZE // 4, SIZE // 4)), np.ones((4, 4))),
        "waves": lambda: swing(1.5 * pitch * u + 2 * np.sin(pitch * v) + p),
        "grid": lambda: np.maximum(swing(2 * pitch * u + p), swing(2 * pitch * v + q)) > 0.85,
        "rays": lambda: swing(6 * np.arctan2(away_y, away_x) + p),
        "steps": lambda: swing(1.5 * pitch * (u - v) + p) > 0.5,
    }
    return patterns[name]().astype(np.float32)


def paint(image: Array, mask: Array, colour: Array) -> Array:
    """Blend a colour [3], or another image, into the image by the mask."""
    cover = mask[..., None]
    return (image * (1 - cover) + cover * colour).astype(np.float32)


def colour(random: Random, among: Sequence[int] = range(len(COLOURS))) -> Array:
    """Return a named colour with a small perturbation."""
    return shade(COLOURS[among[int(random.integers(len(among)))]], random)


def shade(base: Array, random: Random) -> Array:
    return np.clip(base + random.normal(0, 0.07, 3), 0, 1).astype(np.float32)


def ground(random: Random, *, textured: bool = True) -> Array:
    """Return a dark background, often with a faint pattern."""
    image = np.ones((SIZE, SIZE, 3), np.float32) * (random.uniform(0, 0.6, 3) * random.uniform(0.2, 1)).astype(np.float32)
    if textured and random.random() < 0.6:
        pattern = texture(TEXTURES[int(random.integers(len(TEXTURES)))], random)
        image = image + pattern[..., None] * random.uniform(-0.25, 0.25, 3).astype(np.float32)
    return image


def scatter(random: Random, count: int, apart: float, reach: float = 0.75) -> list[Array]:
    """Draw `count` positions at least `apart` from each other; fewer if there is no room."""
    places: list[Array] = []
    for _ in range(300):
        if len(places) == count:
            break
        place = random.uniform(-reach, reach, 2)
        if all(np.hypot(*(place - other)) > apart for other in places):
            places.append(place)
    return places


def finish(image: Array, random: Random, noise: float) -> Array:
    """Add sensor noise, and convert to [SIZE, SIZE, 3] uint8."""
    return (np.clip(image + random.normal(0, noise, image.shape), 0, 1) * 255).round().astype(np.uint8)

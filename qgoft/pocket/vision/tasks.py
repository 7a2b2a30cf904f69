"""Synthetic VTAB: one drawn task for each of the nineteen, in the same three groups, under the same names."""

import math
from collections.abc import Callable

import numpy as np

from qgoft.pocket.vision.draw import (
    COLOURS,
    SIZE,
    Array,
    Random,
    Segment,
    X,
    Y,
    colour,
    finish,
    ground,
    outline,
    paint,
    scatter,
    shade,
    strokes,
    texture,
)

Draw = Callable[[Random, int], Array]
SIZES = {"train800": 800, "val200": 200, "test": 1000}
NOISE = 0.08

DIGITS: dict[int, list[Segment]] = {
    0: [(-0.6, -0.9, 0.6, -0.9), (0.6, -0.9, 0.6, 0.9), (0.6, 0.9, -0.6, 0.9), (-0.6, 0.9, -0.6, -0.9)],
    1: [(0, -0.9, 0, 0.9), (-0.4, -0.6, 0, -0.9)],
    2: [(-0.6, -0.9, 0.6, -0.9), (0.6, -0.9, 0.6, 0), (0.6, 0, -0.6, 0.9), (-0.6, 0.9, 0.6, 0.9)],
    3: [(-0.6, -0.9, 0.6, -0.9), (0.6, -0.9, 0.6, 0.9), (0.6, 0.9, -0.6, 0.9), (-0.2, 0, 0.6, 0)],
    4: [(-0.5, -0.9, -0.6, 0.1), (-0.6, 0.1, 0.6, 0.1), (0.4, -0.4, 0.4, 0.9)],
    5: [(0.6, -0.9, -0.6, -0.9), (-0.6, -0.9, -0.6, 0), (-0.6, 0, 0.6, 0), (0.6, 0, 0.6, 0.9), (0.6, 0.9, -0.6, 0.9)],
    6: [(0.4, -0.9, -0.6, 0), (-0.6, 0, -0.6, 0.9), (-0.6, 0.9, 0.6, 0.9), (0.6, 0.9, 0.6, 0.1), (0.6, 0.1, -0.6, 0.1)],
    7: [(-0.6, -0.9, 0.6, -0.9), (0.6, -0.9, -0.1, 0.9)],
    8: [(-0.5, -0.9, 0.5, -0.9), (0.5, -0.9, 0.5, 0.9), (0.5, 0.9, -0.5, 0.9), (-0.5, 0.9, -0.5, -0.9), (-0.5, 0, 0.5, 0)],
    9: [(-0.6, -0.9, 0.6, -0.9), (0.6, -0.9, 0.6, 0), (0.6, 0, -0.6, 0), (-0.6, 0, -0.6, -0.9), (0.6, 0, 0.3, 0.9)],
}
TURN = 2 * math.pi


def _place(random: Random, reach: float) -> tuple[float, float]:
    x, y = random.uniform(-reach, reach, 2)
    return float(x), float(y)


def cifar(random: Random, label: int) -> Array:
    """A shape and its texture."""
    mask = outline(
        ("disc", "square", "triangle", "star4")[label % 4], *_place(random, 0.3), random.uniform(0.4, 0.7), random.uniform(0, TURN)
    )
    pattern = texture(("upright", "checks")[label // 4], random)[..., None]
    one, two = random.uniform(0.2, 1, (2, 3))
    return paint(ground(random, textured=False), mask, pattern * one + (1 - pattern) * two)


def caltech101(random: Random, label: int) -> Array:
    """Six outlines that do not occur in pretraining."""
    name = ("bar", "heart", "cross", "drop", "ring", "tee")[label]
    return paint(ground(random), outline(name, *_place(random, 0.3), random.uniform(0.35, 0.65), random.uniform(0, TURN)), colour(random))


def dtd(random: Random, label: int) -> Array:
    pattern = texture(("waves", "grid", "rays", "steps", "checks", "blocks")[label], random)[..., None]
    one, two = random.uniform(0, 1, 3), random.uniform(0, 1, 3)
    # Low contrast and noise: the patterns alone are too easy.
    two = one + (two - one) * 0.6
    return pattern * one + (1 - pattern) * two + random.normal(0, 0.1, (SIZE, SIZE, 1))


def oxford_flowers102(random: Random, label: int) -> Array:
    """Number of petals and colour."""
    petals, away, around = 3 + label % 4, np.hypot(X, Y), np.arctan2(Y, X)
    reach = random.uniform(0.5, 0.8) * (0.55 + 0.45 * np.cos(petals * around + random.uniform(0, TURN)))
    flower = np.clip((reach - away) * 8 + 0.5, 0, 1).astype(np.float32)
    image = paint(ground(random), flower, shade(COLOURS[(0, 4)[label // 4]], random))
    return paint(image, outline("disc", 0, 0, 0.15), COLOURS[3])


def oxford_iiit_pet(random: Random, label: int) -> Array:
    """Heads that differ in the form and distance of the ears."""
    image, fur, size = ground(random), colour(random, (8, 9)), random.uniform(0.4, 0.5)
    ear, apart = ("triangle", "disc", "ellipse")[label % 3], (0.3, 0.5)[label // 3]
    x, y = _place(random, 0.2)
    for side in (-1, 1):
        image = paint(image, outline(ear, x + side * apart, y - 0.9 * size, 0.22, -math.pi / 2), fur)
    image = paint(image, outline("disc", x, y, size), fur)
    for side in (-1, 1):
        image = paint(image, outline("disc", x + 0.17 * side, y - 0.05, 0.07), np.zeros(3, np.float32))
    return image


def svhn(random: Random, label: int) -> Array:
    mask = strokes(
        DIGITS[label], *_place(random, 0.2), random.uniform(0.5, 0.8), random.normal(0, 0.15), random.uniform(0.06, 0.13), 0.06, random
    )
    return paint(ground(random), mask, colour(random))


def sun397(random: Random, label: int) -> Array:
    """A scene: height of the horizon, and the objects on it."""
    horizon, thing = (-0.4, 0.3)[label % 2], label // 2
    image = np.where((horizon > Y)[..., None], random.uniform(0.3, 1, 3), random.uniform(0, 0.7, 3)).astype(np.float32)
    for x in random.uniform(-0.8, 0.8, 3):
        if thing == 0:
            image = paint(image, outline("triangle", x, horizon - 0.1, 0.25, math.pi / 2), random.uniform(0, 0.5, 3))
        elif thing == 1:
            image = paint(image, outline("square", x, horizon - 0.15, 0.2), random.uniform(0, 0.5, 3))
        else:
            image = paint(image, outline("disc", x, horizon - 0.5, 0.15), random.uniform(0.5, 1, 3))
    return image


def patch_camelyon(random: Random, label: int) -> Array:
    """Tissue whose centre has order, or none in tumours; what surrounds the centre says nothing about it."""
    one = shade(np.array([0.9, 0.7, 0.85]), random)
    two = shade(np.array([0.65, 0.4, 0.7]), random)
    around, centre = (texture(("dots", "grain")[kind], random)[..., None] for kind in (int(random.integers(2)), label))
    pattern = np.where((np.maximum(np.abs(X), np.abs(Y)) < 0.55)[..., None], centre, around)
    return pattern * two + (1 - pattern) * one + random.normal(0, 0.1, (SIZE, SIZE, 1))


def eurosat(random: Random, label: int) -> Array:
    """Land from above in any of its colours: six forms of fields, at low contrast."""
    land = np.array([[0.2, 0.5, 0.2], [0.3, 0.45, 0.25], [0.5, 0.5, 0.3], [0.45, 0.45, 0.45], [0.4, 0.35, 0.2]])
    one, two = (shade(land[int(random.integers(len(land)))], random) for _ in range(2))
    pattern = texture(("upright", "level", "slanting", "checks", "dots", "blocks")[label], random)[..., None]
    two = two + random.choice([-0.15, 0.15])
    return pattern * one + (1 - pattern) * two + random.normal(0, 0.1, (SIZE, SIZE, 1))


def resisc45(random: Random, label: int) -> Array:
    """A river, a road, a crossing, fields, tanks, houses."""
    turn = random.uniform(0, math.pi)
    u, v = X * math.cos(turn) + Y * math.sin(turn), Y * math.cos(turn) - X * math.sin(turn)
    if label < 4:
        masks = (np.abs(u + 0.2 * np.sin(4 * v)) < 0.15, np.abs(u) < 0.12, (np.abs(u) < 0.12) | (np.abs(v) < 0.12), np.sin(8 * u) > 0)
        mask = masks[label].astype(np.float32)
    else:
        name, size = (("disc", 0.2), ("square", 0.18))[label - 4]
        mask = np.maximum.reduce([outline(name, x, y, size, turn) for x, y in scatter(random, 4, 0.5)])
    return paint(np.ones((SIZE, SIZE, 3), np.float32) * random.uniform(0.2, 0.6, 3), mask, random.uniform(0.5, 1, 3))


def diabetic_retinopathy(random: Random, label: int) -> Array:
    """Five grades by the number of small spots."""
    image = paint(np.zeros((SIZE, SIZE, 3), np.float32), outline("disc", 0, 0, 0.95), shade(np.array([0.8, 0.4, 0.15]), random))
    for x, y in scatter(random, (0, 2, 4, 7, 11)[label], 0.2):
        image = paint(image, outline("disc", 0.8 * x, 0.8 * y, 0.07), np.array([0.5, 0.05, 0.05]))
    return image


def clevr_count(random: Random, label: int) -> Array:
    image = ground(random, textured=False)
    for x, y in scatter(random, label + 2, 0.42):
        name = ("disc", "square", "triangle")[int(random.integers(3))]
        image = paint(image, outline(name, x, y, random.uniform(0.13, 0.2), random.uniform(0, TURN)), colour(random, range(8)))
    return image


def clevr_dist(random: Random, label: int) -> Array:
    """Distance of the nearest object: its size, next to a small one."""
    near, far = scatter(random, 2, 0.7)
    size = (0.12, 0.2, 0.3, 0.42)[label] * random.uniform(0.9, 1.1)
    image = paint(ground(random), outline("square", *far, 0.08), colour(random))
    return paint(image, outline("square", *near, size), colour(random))


def dmlab(random: Random, label: int) -> Array:
    """Distance between two objects."""
    length = (0.35, 0.65, 0.95, 1.3)[label] * random.uniform(0.93, 1.07)
    while True:
        one, turn = random.uniform(-0.8, 0.8, 2), random.uniform(0, TURN)
        two = one + length * np.array([math.cos(turn), math.sin(turn)])
        if np.abs(two).max() < 0.85:
            break
    image = paint(ground(random, textured=False), outline("disc", *one, 0.14), COLOURS[0])
    return paint(image, outline("triangle", *two, 0.16), COLOURS[5])


def kitti(random: Random, label: int) -> Array:
    """A road to the horizon; the position of the car on it."""
    horizon = random.uniform(-0.5, -0.3)
    image = np.where((horizon > Y)[..., None], random.uniform(0.5, 1, 3), random.uniform(0.1, 0.4, 3)).astype(np.float32)
    depth = np.clip((Y - horizon) / (1 - horizon), 0, 1)
    road = (np.abs(X) < 0.08 + 0.7 * depth) & (horizon < Y)
    image = paint(image, road.astype(np.float32), np.full(3, random.uniform(0.4, 0.6)))
    share = (0.9, 0.6, 0.35, 0.15)[label] * random.uniform(0.93, 1.07)
    x = random.uniform(-0.4, 0.4) * share
    return paint(image, outline("square", x, horizon + share * (1 - horizon) - 0.1, 0.08 + 0.25 * share), colour(random, (0, 2, 3, 7)))


def dsprites_loc(random: Random, label: int) -> Array:
    x = -0.78 + 0.223 * label + random.uniform(-0.05, 0.05)
    name = ("disc", "square", "triangle")[int(random.integers(3))]
    mask = outline(name, x, random.uniform(-0.7, 0.7), random.uniform(0.15, 0.3), random.uniform(0, TURN))
    return paint(ground(random, textured=False), mask, colour(random))


def dsprites_ori(random: Random, label: int) -> Array:
    turn = label * math.pi / 4 + random.uniform(-0.2, 0.2)
    mask = outline("drop", *_place(random, 0.4), random.uniform(0.4, 0.6), turn)
    return paint(ground(random, textured=False), mask, colour(random))


def smallnorb_azi(random: Random, label: int) -> Array:
    """Direction of a bar behind a disc, in steps of 30 degrees."""
    turn, (x, y) = label * math.pi / 6 + random.uniform(-0.2, 0.2), _place(random, 0.2)
    image = paint(ground(random), outline("bar", x, y, random.uniform(0.35, 0.6), turn), colour(random))
    return paint(image, outline("disc", x, y, 0.22), colour(random))


def smallnorb_ele(random: Random, label: int) -> Array:
    """Elevation at which a disc is seen."""
    flat, (x, y), size = 0.25 + 0.13 * label + random.uniform(-0.03, 0.03), _place(random, 0.2), random.uniform(0.5, 0.75)
    mask = np.clip((1 - np.hypot((X - x) / size, (Y - y) / (size * flat))) * size * flat * 16 + 0.5, 0, 1).astype(np.float32)
    return paint(ground(random, textured=False), mask, colour(random))


# name -> drawing function, and number of classes
TASKS: dict[str, tuple[Draw, int]] = {
    "cifar": (cifar, 8),
    "caltech101": (caltech101, 6),
    "dtd": (dtd, 6),
    "oxford_flowers102": (oxford_flowers102, 8),
    "oxford_iiit_pet": (oxford_iiit_pet, 6),
    "svhn": (svhn, 10),
    "sun397": (sun397, 6),
    "patch_camelyon": (patch_camelyon, 2),
    "eurosat": (eurosat, 6),
    "resisc45": (resisc45, 6),
    "diabetic_retinopathy": (diabetic_retinopathy, 5),
    "clevr_count": (clevr_count, 6),
    "clevr_dist": (clevr_dist, 4),
    "dmlab": (dmlab, 4),
    "kitti": (kitti, 4),
    "dsprites_loc": (dsprites_loc, 8),
    "dsprites_ori": (dsprites_ori, 8),
    "smallnorb_azi": (smallnorb_azi, 6),
    "smallnorb_ele": (smallnorb_ele, 6),
}


def generate_pictures(task: str, split: str) -> tuple[Array, list[int]]:
    """Draw all images of a split [n, SIZE, SIZE, 3] uint8 and their labels. Splits are drawn independently."""
    draw, classes = TASKS[task]
    random = np.random.default_rng([*f"pocket/vtab/{task}/{split}".encode()])
    labels = [int(label) for label in random.integers(classes, size=SIZES[split])]
    return np.stack([finish(draw(random, label), random, NOISE) for label in labels]), labels

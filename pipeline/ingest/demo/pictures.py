"""Draw small PNG pictures that show an item's category: the colour is the top category, the shape its leaf.

Position, size and shade of the shape vary from item to item. A picture tells nothing but the category.
"""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

SIDE = 48
COLOURS = (
    (214, 76, 60),
    (52, 120, 196),
    (126, 82, 168),
    (44, 160, 120),
    (230, 160, 40),
    (190, 96, 140),
    (120, 140, 60),
    (70, 90, 110),
)


def draw(category: int, leaf: int, rng: np.random.Generator) -> bytes:
    """Return the PNG bytes of one item's picture; `leaf` counts inside its category."""
    shade = rng.uniform(0.8, 1.15)
    red, green, blue = (min(255, int(channel * shade)) for channel in COLOURS[category])
    image = Image.new("RGB", (SIDE, SIDE), (red, green, blue))
    x, y = rng.uniform(20, 28), rng.uniform(20, 28)
    radius = rng.uniform(12, 17)
    ImageDraw.Draw(image).polygon(_outline(leaf, x, y, radius, rng.uniform(0, 0.3)), fill=(250, 246, 236))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _outline(leaf: int, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    """Return the corners of a leaf's shape: polygons of 3, 4, ... corners for even leaves, stars for odd ones."""
    star = leaf % 2 == 1
    corners = 3 + star + leaf // 2
    points = []
    for corner in range(corners * (2 if star else 1)):
        angle = turn + corner * math.tau / (corners * (2 if star else 1)) - math.tau / 4
        reach = radius * (0.4 if star and corner % 2 else 1.0)
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return points

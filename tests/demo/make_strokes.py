"""Makes ``strokes.json``: a hundred digits as five hands draw them, for the test of the page.

    python tests/demo/make_strokes.py

Each digit has two or three skeletons, designed by hand after how people write it. A hand draws
every digit twice, with its own slant, size, place, speed (points along the way), tremor and habit
of lifting the pen. No network was asked which of them it knows.
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

PATH = Path(__file__).parent / "strokes.json"
# Points are in thousandths of the page's side.
PAGE = 1000

Curve = list[tuple[float, float]]


def line(*points: tuple[float, float]) -> list[Curve]:
    """Straight pieces, with corners between them."""
    return [list(pair) for pair in itertools.pairwise(points)]


def arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> Curve:
    """Part of an ellipse, by angles in degrees: 0 is right, 90 is down."""
    angles = np.radians(np.linspace(start, stop, 9))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


# Digit -> skeletons; a skeleton is strokes, a stroke is pieces one after the other, a piece is the
# points of a smooth curve. x to the right, y downwards, in a box of 1 by 1.
SKELETONS: dict[str, list[list[list[Curve]]]] = {
    "0": [
        [[arc(0.5, 0.5, 0.5, 0.5, -90, -450)]],
        [[arc(0.5, 0.5, 0.45, 0.5, -60, 320)]],
        [[arc(0.5, 0.5, 0.4, 0.5, -110, -455)]],
    ],
    "1": [
        [line((0.5, 0), (0.5, 1))],
        [line((0.2, 0.25), (0.55, 0), (0.55, 1))],
        [line((0.25, 0.2), (0.5, 0), (0.5, 1)), line((0.2, 1), (0.8, 1))],
    ],
    "2": [
        [
            [
                [(0.08, 0.25), (0.25, 0.04), (0.6, 0), (0.88, 0.2), (0.75, 0.5), (0.05, 1)],
                *line((0.05, 1), (0.95, 1)),
            ]
        ],
        [
            [
                [
                    (0.1, 0.2),
                    (0.45, 0),
                    (0.85, 0.2),
                    (0.65, 0.6),
                    (0.25, 0.95),
                    (0.08, 0.95),
                    (0.1, 0.8),
                    (0.35, 0.8),
                    (0.65, 0.95),
                    (0.98, 0.93),
                ]
            ]
        ],
    ],
    "3": [
        [
            [
                [(0.1, 0.12), (0.5, 0), (0.85, 0.2), (0.7, 0.42), (0.38, 0.47)],
                [(0.38, 0.47), (0.75, 0.53), (0.93, 0.76), (0.6, 1), (0.05, 0.9)],
            ]
        ],
        [
            [
                *line((0.1, 0), (0.85, 0), (0.4, 0.4)),
                [(0.4, 0.4), (0.8, 0.48), (0.93, 0.72), (0.6, 1), (0.05, 0.92)],
            ]
        ],
    ],
    "4": [
        [line((0.2, 0), (0.08, 0.58), (0.95, 0.58)), line((0.68, 0.2), (0.68, 1))],
        [line((0.7, 0), (0.05, 0.66), (0.98, 0.66)), line((0.7, 0), (0.7, 1))],
        [[[(0.15, 0.02), (0.08, 0.35), (0.2, 0.55), (0.8, 0.5)]], line((0.8, 0.05), (0.75, 1))],
    ],
    "5": [
        [
            [
                *line((0.2, 0), (0.14, 0.42)),
                [(0.14, 0.42), (0.5, 0.34), (0.9, 0.58), (0.75, 0.92), (0.4, 1), (0.05, 0.9)],
            ],
            line((0.2, 0), (0.88, 0.0)),
        ],
        [
            [
                *line((0.88, 0.02), (0.22, 0), (0.16, 0.44)),
                [(0.16, 0.44), (0.55, 0.38), (0.9, 0.62), (0.7, 0.95), (0.35, 1), (0.03, 0.88)],
            ]
        ],
    ],
    "6": [
        [
            [
                [
                    (0.75, 0),
                    (0.35, 0.2),
                    (0.1, 0.6),
                    (0.2, 0.92),
                    (0.55, 1),
                    (0.88, 0.8),
                    (0.75, 0.56),
                    (0.4, 0.54),
                    (0.14, 0.74),
                ]
            ]
        ],
        [
            [
                [
                    (0.45, 0),
                    (0.2, 0.35),
                    (0.1, 0.7),
                    (0.3, 0.98),
                    (0.65, 0.98),
                    (0.85, 0.78),
                    (0.65, 0.58),
                    (0.35, 0.62),
                    (0.16, 0.82),
                ]
            ]
        ],
    ],
    "7": [
        [line((0.05, 0), (0.95, 0), (0.4, 1))],
        [line((0.05, 0.03), (0.95, 0), (0.35, 1)), line((0.3, 0.5), (0.85, 0.48))],
        [[[(0.05, 0.08), (0.5, 0.03), (0.92, 0.02)], [(0.92, 0.02), (0.6, 0.45), (0.45, 1)]]],
    ],
    "8": [
        [
            [
                [
                    (0.78, 0.12),
                    (0.5, 0),
                    (0.2, 0.14),
                    (0.28, 0.38),
                    (0.65, 0.54),
                    (0.88, 0.77),
                    (0.65, 0.98),
                    (0.35, 0.98),
                    (0.12, 0.77),
                    (0.35, 0.54),
                    (0.72, 0.36),
                    (0.8, 0.14),
                ]
            ]
        ],
        [[arc(0.5, 0.24, 0.33, 0.24, 90, 450), arc(0.5, 0.74, 0.42, 0.26, -90, 270)]],
    ],
    "9": [
        [
            [
                [(0.86, 0.2), (0.5, 0), (0.12, 0.22), (0.28, 0.48), (0.65, 0.44), (0.86, 0.2)],
                *line((0.86, 0.2), (0.78, 1)),
            ]
        ],
        [
            [
                [(0.84, 0.18), (0.45, 0), (0.1, 0.25), (0.35, 0.5), (0.75, 0.38), (0.85, 0.15)],
                [(0.85, 0.15), (0.87, 0.6), (0.65, 0.95), (0.2, 0.96)],
            ]
        ],
    ],
}


@dataclass(frozen=True)
class Hand:
    """How someone draws; lengths are shares of the page's side."""

    slant: float  # shift to the right, for each unit of height
    height: float
    width: float  # of the digit, for a height of 1
    place: tuple[float, float]  # of its middle
    step: float  # between two points: what a mouse reports of a fast hand is far apart
    tremor: float  # standard deviation of each point
    sloppiness: float  # standard deviation of the skeleton's points, in its own unit
    break_every: float  # length of ink between two lifts of the pen


HANDS = [
    Hand(0.0, 0.62, 0.62, (0.50, 0.50), 0.012, 0.001, 0.015, math.inf),  # upright and careful
    Hand(0.32, 0.72, 0.58, (0.52, 0.48), 0.060, 0.002, 0.030, math.inf),  # leaning and fast
    Hand(-0.15, 0.30, 0.66, (0.28, 0.30), 0.010, 0.002, 0.025, math.inf),  # small, in a corner
    Hand(0.10, 0.80, 0.60, (0.50, 0.50), 0.020, 0.006, 0.025, 0.7),  # large, trembling, lifting
    Hand(0.20, 0.42, 0.85, (0.66, 0.64), 0.025, 0.003, 0.035, 1.2),  # wide and flat
]


def trace(curve: np.ndarray, step: float) -> np.ndarray:
    """Points along a smooth curve through the given ones, slower towards its ends."""
    lengths = np.r_[0, np.cumsum(np.hypot(*np.diff(curve, axis=0).T))]
    spline = CubicSpline(lengths, curve) if len(curve) > 2 else None
    even = np.linspace(0, 1, max(3, round(lengths[-1] / step) + 1))
    at = lengths[-1] * (even - 0.08 * np.sin(2 * np.pi * even))
    if spline is not None:
        return spline(at)
    return curve[0] + (curve[1] - curve[0]) * (at / lengths[-1])[:, None]


def draw(skeleton: list[list[Curve]], hand: Hand, rng: np.random.Generator) -> list[np.ndarray]:
    """The skeleton by this hand: strokes of points in [0, 1], the page."""
    slant = hand.slant + rng.normal(0, 0.05)
    turn = math.radians(rng.normal(0, 3))
    size = hand.height * rng.uniform(0.85, 1.1) * np.array([hand.width * rng.uniform(0.9, 1.1), 1])
    middle = np.array(hand.place) + rng.normal(0, 0.03, 2)
    moved: dict[tuple[float, float], np.ndarray] = {}  # pieces that meet go on meeting

    def place(point: tuple[float, float]) -> np.ndarray:
        if point not in moved:
            x, y = (np.array(point) - 0.5 + rng.normal(0, hand.sloppiness, 2)) * size
            x -= slant * y
            cos, sin = math.cos(turn), math.sin(turn)
            moved[point] = middle + np.array([x * cos - y * sin, x * sin + y * cos])
        return moved[point]

    strokes = []
    for pieces in skeleton:
        curves = [trace(np.array([place(p) for p in piece]), hand.step) for piece in pieces]
        points = np.concatenate([curves[0], *(curve[1:] for curve in curves[1:])])
        points = points + rng.normal(0, hand.tremor, points.shape)
        strokes += lift(np.clip(points, 0.02, 0.98), hand.break_every * rng.uniform(0.7, 1.3))
    return strokes


def lift(points: np.ndarray, every: float) -> list[np.ndarray]:
    """The stroke in parts of at most that length, with a small gap where the pen was lifted."""
    parts, start, length = [], 0, 0.0
    for i in range(1, len(points)):
        length += np.hypot(*(points[i] - points[i - 1]))
        if length > every and len(points) - i > 4:
            parts.append(points[start:i])
            start, length = i + 1, 0.0
    return [*parts, points[start:]]


def main() -> None:
    rng = np.random.default_rng(6)
    drawings = []
    for number, hand in enumerate(HANDS):
        for digit, skeletons in SKELETONS.items():
            for again in range(2):
                strokes = draw(skeletons[(number + again) % len(skeletons)], hand, rng)
                whole = [np.round(PAGE * stroke).astype(int).tolist() for stroke in strokes]
                drawings.append({"hand": number, "digit": digit, "strokes": whole})
    lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in drawings)
    PATH.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

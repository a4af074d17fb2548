#!/usr/bin/env python3
"""Draws what `pikv eval --compare ... --json FILE` has measured: quality against bytes, one point a row.

    python3 tools/plot_eval.py FILE.json -o plot.svg
    python3 tools/plot_eval.py FILE.json --accuracy --x read_bytes_per_step -o plot.svg

Quality is the difference of the NLL to the first row, with its paired 95 % interval, or with --accuracy the share of
right answers, with the 95 % interval of Wilson over all samples. Rows without the two numbers are left out and named.

The SVG is written directly and needs nothing but Python. Colours follow the reader's light or dark setting.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 84, 28, 44, 64  # margins around the axes
LABEL_CHARS_MAX = 48
LABEL_GAP = 15  # pixels between the base lines of two labels
LABEL_STEPS_MAX = 12  # gaps that a label may be away from its point
CHAR_PIXELS = 6.8  # of a label's character, about
Z = 1.959964  # 97.5 % quantile of the normal distribution

X_TITLES = {
    "resident_bytes_per_token": "bytes a token holds in the KV cache",
    "read_bytes_per_step": "bytes read per sequence and decode step",
}

STYLE = """
  svg { background: #ffffff; font: 12px system-ui, sans-serif; }
  text { fill: #52514e; }
  .title { fill: #0b0b0b; font-size: 14px; font-weight: 600; }
  .label { fill: #0b0b0b; stroke: #ffffff; stroke-width: 3; paint-order: stroke; }
  .grid { stroke: #e1e0d9; stroke-width: 1; }
  .axis, .leader { stroke: #8b8a85; stroke-width: 1; }
  .interval { stroke: #2a78d6; stroke-width: 1.5; }
  .point { fill: #2a78d6; stroke: #ffffff; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    svg { background: #1a1a19; }
    text { fill: #c3c2b7; }
    .title, .label { fill: #ffffff; }
    .label { stroke: #1a1a19; }
    .grid { stroke: #2c2c2a; }
    .interval { stroke: #3987e5; }
    .point { fill: #3987e5; stroke: #1a1a19; }
  }
"""


@dataclass
class Point:
    name: str
    x: float
    y: float
    low: float  # the interval; equal to y where there is none
    high: float


def wilson(share, n):
    """The 95 % interval of a share of n samples (Wilson 1927); it has a width at 0 and 1 too."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return min(middle - half, share), max(middle + half, share)


def quality_of(row, is_first, with_accuracy):
    """(value, low, high), or None if the row has not measured it."""
    if with_accuracy:
        share, n = row.get("accuracy"), row.get("n_samples")
        return None if share is None or not n else (share, *wilson(share, n))
    value, half = row.get("nll_difference"), row.get("nll_difference_ci95") or 0
    if value is None and is_first and row.get("nll") is not None:
        value = 0  # from itself
    return None if value is None else (value, value - half, value + half)


def points_of(rows, x_key, with_accuracy):
    """The points, and the names of rows that have none."""
    points, missing = [], []
    for i, row in enumerate(rows):
        name = str(row.get("config") or f"row {i + 1}")
        x, quality = row.get(x_key), quality_of(row, i == 0, with_accuracy)
        if x is None or quality is None:
            missing.append(name)
        else:
            points.append(Point(name, x, *quality))
    return points, missing


def nice_step(span, n):
    """1, 2 or 5 times a power of ten, so that about n steps make the span."""
    raw = span / n
    power = 10 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


class Scale:
    """Values to pixels, with a margin, and ticks at round values."""

    def __init__(self, values, begin, end):
        low, high = min(values), max(values)
        margin = (high - low) * 0.08 or abs(high) * 0.1 or 1
        self.low, self.high = low - margin, high + margin
        self.begin, self.end = begin, end

    def __call__(self, value):
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self, n):
        step = nice_step(self.high - self.low, n)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)], step


def format_tick(value, step):
    """As many decimals as the step has."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value:,.{decimals}f}"
    return text[1:] if float(text.replace(",", "")) == 0 and text.startswith("-") else text


def line(kind, x1, y1, x2, y2):
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(kind, x, y, words, anchor="start", more=""):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def draw_axes(x, y, x_title, y_title, title):
    parts = []
    values, step = y.ticks(6)
    for value in values:
        parts.append(line("grid", LEFT, y(value), WIDTH - RIGHT, y(value)))
        parts.append(text("tick", LEFT - 8, y(value) + 4, format_tick(value, step), "end"))
    values, step = x.ticks(6)
    for value in values:
        parts.append(line("axis", x(value), HEIGHT - BOTTOM, x(value), HEIGHT - BOTTOM + 5))
        parts.append(text("tick", x(value), HEIGHT - BOTTOM + 20, format_tick(value, step), "middle"))
    parts.append(line("axis", LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM))
    parts.append(text("title", LEFT, 24, title))
    parts.append(text("name", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, x_title, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text("name", 18, middle, y_title, "middle", f' transform="rotate(-90 18 {middle:.1f})"'))
    return parts


def shorten(name):
    return name if len(name) <= LABEL_CHARS_MAX else name[:LABEL_CHARS_MAX - 1] + "\u2026"


def overlaps(a, b):
    """Two boxes (left, top, right, bottom)."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def label_boxes(pixels, at_x, at_y):
    """Where a label may go, the best place first: right or left of its point, then further up and down."""
    for steps in range(LABEL_STEPS_MAX):
        for down in (steps, -steps):
            middle = at_y - 4 + down * LABEL_GAP
            for left in (at_x + 10, at_x - 10 - pixels):
                box = (left, middle - 7, left + pixels, middle + 7)
                if left > LEFT and box[2] <= WIDTH - 4 and box[1] >= TOP - 14 and box[3] <= HEIGHT - BOTTOM:
                    yield box


def place_labels(points, x, y):
    """A box for each label that covers no point and no other label, as far as there is room."""
    taken = [(x(p.x) - 7, y(p.y) - 7, x(p.x) + 7, y(p.y) + 7) for p in points]
    boxes = []
    for p in points:
        pixels = len(shorten(p.name)) * CHAR_PIXELS
        places = list(label_boxes(pixels, x(p.x), y(p.y)))
        free = [box for box in places if not any(overlaps(box, other) for other in taken)]
        box = (free + places + [(LEFT, y(p.y) - 18, LEFT + pixels, y(p.y) - 4)])[0]
        taken.append(box)
        boxes.append(box)
    return boxes


def draw_points(points, x, y):
    parts = []
    for p in points:
        if p.high > p.low:
            parts.append(line("interval", x(p.x), y(p.low), x(p.x), y(p.high)))
            for end in (p.low, p.high):
                parts.append(line("interval", x(p.x) - 4, y(end), x(p.x) + 4, y(end)))
    boxes = place_labels(points, x, y)
    for p, (left, top, right, bottom) in zip(points, boxes):
        middle = (top + bottom) / 2
        if abs(middle - y(p.y)) > LABEL_GAP:  # far enough to ask which point it belongs to
            parts.append(line("leader", x(p.x), y(p.y), left if left > x(p.x) else right, middle))
    for p, (left, _, right, bottom) in zip(points, boxes):
        at, anchor = (left, "start") if left > x(p.x) else (right, "end")
        parts.append(text("label", at, bottom - 3, shorten(p.name), anchor))
    for p in points:
        tip = escape(f"{p.name}: {p.x:.6g}, {p.y:.6g} [{p.low:.6g}, {p.high:.6g}]")
        parts.append(f'<circle class="point" cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="5"><title>{tip}</title></circle>')
    return parts


def draw(points, x_title, y_title, title):
    """The whole document."""
    x = Scale([p.x for p in points], LEFT, WIDTH - RIGHT)
    y = Scale([v for p in points for v in (p.low, p.high)], HEIGHT - BOTTOM, TOP)
    parts = draw_axes(x, y, x_title, y_title, title) + draw_points(points, x, y)
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" role="img" aria-label="{escape(title)}">')
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        rows = json.load(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("is not an array of rows")
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="from pikv eval --json")
    parser.add_argument("-o", "--out", required=True, help="the SVG file")
    parser.add_argument("--x", choices=sorted(X_TITLES), default="resident_bytes_per_token")
    parser.add_argument("--accuracy", action="store_true", help="right answers instead of the NLL")
    args = parser.parse_args(argv)
    try:
        points, missing = points_of(read_rows(args.file), args.x, args.accuracy)
    except (OSError, ValueError) as error:
        sys.exit(f"plot_eval.py: {args.file}: {error}")
    for name in missing:
        print(f"plot_eval.py: left out, not measured: {name}", file=sys.stderr)
    if not points:
        sys.exit(f"plot_eval.py: {args.file}: no row has what is to be drawn")
    quality = "accuracy" if args.accuracy else "NLL, difference to the first row"
    unit = "share of right answers" if args.accuracy else "nats per token"
    with open(args.out, "w", encoding="utf-8") as file:
        file.write(draw(points, X_TITLES[args.x], unit, f"{quality}, with 95 % intervals"))


if __name__ == "__main__":
    main()

"""Draws the log of tools/train_default_model.py: validation loss above, look-up below, over the tokens trained on.

    python tools/train_curve.py log.csv curve.svg
"""
import csv
import math
import sys

WIDTH, PANEL, GAP, LEFT, RIGHT, TOP = 760, 210, 56, 58, 120, 34
COLOURS = ("#3b6fb6", "#c2632b", "#3c8a4e", "#8a4fa3", "#9a7d1c")
STYLE = ("text{font:12px sans-serif;fill:#333}.axis{stroke:#999;fill:none}.grid{stroke:#ddd}"
         "@media(prefers-color-scheme:dark){svg{background:#1b1d20}text{fill:#ccc}.grid{stroke:#3a3d42}}")


class Panel:
    """One chart: data coordinates to places on the page."""

    def __init__(self, top, x_max, y_min, y_max):
        self.top, self.x_max, self.y_min, self.y_max = top, x_max, y_min, y_max
        self.parts = []

    def x(self, value):
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_max

    def y(self, value):
        return self.top + PANEL * (self.y_max - value) / (self.y_max - self.y_min)

    def axes(self, title, y_step, y_format):
        self.parts.append(f'<text x="{LEFT}" y="{self.top - 12}">{title}</text>')
        for i in range(round((self.y_max - self.y_min) / y_step) + 1):
            value = self.y_min + i * y_step
            self.parts.append(f'<path class="grid" d="M{LEFT} {self.y(value):.1f}H{WIDTH - RIGHT}"/>'
                              f'<text x="{LEFT - 8}" y="{self.y(value) + 4:.1f}" text-anchor="end">'
                              f'{value:{y_format}}</text>')
        step = 10 ** math.floor(math.log10(self.x_max))
        step = step / 5 if self.x_max / step < 2 else step / 2 if self.x_max / step < 5 else step
        for i in range(int(self.x_max / step) + 1):
            self.parts.append(f'<text x="{self.x(i * step):.1f}" y="{self.top + PANEL + 18}" text-anchor="middle">'
                              f'{i * step / 1e6:g} M</text>')

    def line(self, points, colour, name, name_y):
        points = [(x, min(y, self.y_max)) for x, y in points if not math.isnan(y)]
        if not points:
            return
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
                          f'<text x="{WIDTH - RIGHT + 10}" y="{name_y:.1f}" style="fill:{colour}">{name}</text>')


def draw(log_path, out_path):
    with open(log_path, newline="", encoding="utf-8") as f:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]
    if not rows:
        return
    kinds = [k for k in rows[0] if k not in ("step", "minutes", "tokens", "context", "train", "answers",
                                             "valid_sample", "imbalance")]
    x_max = max(r["tokens"] for r in rows)
    low = math.floor(min(r["valid_sample"] for r in rows) * 5) / 5
    loss = Panel(TOP, x_max, low, low + 2)
    loss.axes("validation loss, nats per token (windows of 512)", 0.4, ".1f")
    loss.line([(r["tokens"], r["valid_sample"]) for r in rows], COLOURS[0], "text", loss.y(rows[-1]["valid_sample"]) + 4)
    share = Panel(TOP + PANEL + GAP, x_max, 0, 1)
    share.axes("questions answered, fresh passages of the stage's context", 0.25, ".0%")
    for i, kind in enumerate(kinds):
        share.line([(r["tokens"], r[kind]) for r in rows], COLOURS[i % len(COLOURS)], kind, share.top + 16 + 18 * i)
    for a, b in zip(rows, rows[1:]):
        if b["context"] != a["context"]:
            x = share.x(a["tokens"])
            share.parts.append(f'<path class="grid" d="M{x:.1f} {share.top}v{PANEL}"/>'
                               f'<text x="{x + 4:.1f}" y="{share.top + PANEL - 6}">{b["context"]:.0f}</text>')
    height = TOP + 2 * PANEL + GAP + 30
    with open(out_path, "w", encoding="utf-8") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
                f'height="{height}"><style>{STYLE}</style>\n' + "\n".join(loss.parts + share.parts) + "\n</svg>\n")


if __name__ == "__main__":
    draw(sys.argv[1], sys.argv[2])

"""A line chart with Pillow: axes, ticks, lines with their names at the end. No more than needed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from foca_dit.files import write_whole

Points = Sequence[tuple[float, float]]

# Distinct in hue and in lightness; the first is the one to look at.
COLOURS = ("#c0392b", "#1f618d", "#239b56", "#7d3c98", "#b9770e", "#17202a", "#7f8c8d", "#117a65")
INK, GRID = "#333333", "#e5e5e5"
FACTOR = 2  # drawn so many times larger, then reduced: smooth lines


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: what it shows.
        x_label, y_label: the axes.
        lines: points by name, in drawing order; not finite ones are left out.
        log_y: logarithmic vertical axis.
        ordered: sort the points by x; False draws a path as it is given.
        colours: by name; lines without one take the next of `COLOURS`.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Points]
    log_y: bool = False
    ordered: bool = True
    colours: Mapping[str, str] = field(default_factory=dict)

    def draw(self, width: int = 760, height: int = 420) -> Image.Image:
        """The chart as an image of this size."""
        lines = {name: self._usable(points) for name, points in self.lines.items()}
        lines = {name: points for name, points in lines.items() if points}
        canvas = Image.new("RGB", (width * FACTOR, height * FACTOR), "white")
        pen = ImageDraw.Draw(canvas)
        small, large = ImageFont.load_default(12 * FACTOR), ImageFont.load_default(15 * FACTOR)
        pen.text((16 * FACTOR, 10 * FACTOR), self.title, fill="black", font=large)
        names = max((pen.textlength(name, font=small) for name in lines), default=0)
        box = (
            64 * FACTOR,
            58 * FACTOR,
            int(width * FACTOR - names - 40 * FACTOR),
            height * FACTOR - 52 * FACTOR,
        )
        pen.text((16 * FACTOR, 34 * FACTOR), self.y_label, fill=INK, font=small)
        middle = (box[0] + box[2]) / 2 - pen.textlength(self.x_label, font=small) / 2
        pen.text((middle, box[3] + 26 * FACTOR), self.x_label, fill=INK, font=small)
        if not lines:
            pen.text((box[0], box[1]), "no finite value to draw", fill=INK, font=small)
            return canvas.resize((width, height), Image.Resampling.LANCZOS)
        xs = [x for points in lines.values() for x, _ in points]
        ys = [y for points in lines.values() for _, y in points]
        x_ticks = ticks(min(xs), max(xs))
        y_ticks = log_ticks(min(ys), max(ys)) if self.log_y else ticks(min(ys), max(ys))
        low, high = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

        def place(x: float, y: float) -> tuple[float, float]:
            left = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
            up = (y - low) / ((high - low) or 1)
            return box[0] + left * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

        for x in x_ticks:
            if min(xs) <= x <= max(xs):
                at = place(x, low)[0]
                pen.line([(at, box[1]), (at, box[3])], fill=GRID, width=FACTOR)
                pen.text((at, box[3] + 6 * FACTOR), f"{x:g}", fill=INK, font=small, anchor="ma")
        for y in y_ticks:
            at = place(min(xs), y)[1]
            pen.line([(box[0], at), (box[2], at)], fill=GRID, width=FACTOR)
            text = f"{10**y:.3g}" if self.log_y else f"{y:g}"
            pen.text((box[0] - 6 * FACTOR, at), text, fill=INK, font=small, anchor="rm")
        ends: list[tuple[float, str, str]] = []
        for index, (name, points) in enumerate(lines.items()):
            colour = self.colours.get(name, COLOURS[index % len(COLOURS)])
            way = [place(x, y) for x, y in points]
            if len(way) > 1:
                pen.line(way, fill=colour, width=2 * FACTOR, joint="curve")
            if len(way) <= 20:
                for x, y in way:
                    r = 3 * FACTOR
                    pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
            ends.append((way[-1][1], name, colour))
        self._label(pen, ends, box, small)
        return canvas.resize((width, height), Image.Resampling.LANCZOS)

    def _label(
        self,
        pen: ImageDraw.ImageDraw,
        ends: list[tuple[float, str, str]],
        box: tuple[int, int, int, int],
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    ) -> None:
        """The names at the lines' ends, pushed apart so that none covers another."""
        line = 15 * FACTOR
        at = -math.inf
        placed = []
        for y, name, colour in sorted(ends):
            at = max(y, at + line)
            placed.append((at, name, colour))
        over = max(0.0, placed[-1][0] - box[3]) if placed else 0.0
        for y, name, colour in placed:
            pen.text((box[2] + 10 * FACTOR, y - over), name, fill=colour, font=font, anchor="lm")

    def _usable(self, points: Points) -> list[tuple[float, float]]:
        finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if self.log_y:
            finite = [(x, math.log10(y)) for x, y in finite if y > 0]
        return sorted(finite) if self.ordered else finite


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers over a range: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def log_ticks(low: float, high: float) -> list[float]:
    """Exponents of round numbers over a range of exponents."""
    whole = range(math.floor(low), math.ceil(high) + 1)
    parts = (1.0,) if len(whole) > 4 else (1.0, 2.0, 5.0)
    marks = [e + math.log10(m) for e in whole for m in parts]
    return [m for m in marks if low - 1e-9 <= m <= high + 1e-9] or [low]


def stack(charts: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Charts of one size side by side, in rows."""
    width, height = charts[0].size
    rows = -(-len(charts) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(charts)), height * rows), "white")
    for index, chart in enumerate(charts):
        sheet.paste(chart, (index % columns * width, index // columns * height))
    return sheet


def picture_format(name: str, path: Path) -> str:
    """The format that a picture's ending says.

    Raises:
        ValueError: The ending is that of no format; the message begins with `name`.
    """
    formats: dict[str, str] = Image.registered_extensions()
    found = formats.get(path.suffix.lower())
    if found is None or found not in Image.SAVE:
        raise ValueError(f"{name}: expected a picture's name to end in .png or alike, got {path}")
    return found


def write_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture, whole or not at all, in the format that the name's ending says.

    Raises:
        ValueError: The ending is that of no format.
    """
    kind, content = picture_format("write_picture", path), io.BytesIO()
    image.save(content, kind)
    write_whole(path, content.getvalue())

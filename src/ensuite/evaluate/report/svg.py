"""Charts as inline SVG: no script, no font, no host to ask.

Colours are CSS variables of the page (``--s0`` ... ``--s7`` for series, ``--grid``, ``--muted``, ``--fg``),
so that a chart follows the page into the dark. Every mark carries a ``<title>``, which browsers show when
the mouse rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from ensuite.evaluate.report.style import STYLE

N_COLOURS = 8
Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line or cloud of points. ``colour`` is an index; past `N_COLOURS` the same colours come back
    dashed.
    """

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    notes: Sequence[str] = ()
    """What the mouse is told at each point; made from x and y when empty."""


@dataclass(frozen=True)
class Frame:
    """The drawing area: maps values to pixels and draws axes."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_log: bool = False
    width: int = 560
    height: int = 320
    left: int = 66
    right: int = 18
    top: int = 14
    bottom: int = 46
    marks: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.x_range
        if self.x_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return (
            self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)
        )

    def add(self, mark: str) -> None:
        self.marks.append(mark)

    def y_axis(self, ticks: Sequence[float], label: str, text: Format) -> None:
        """Draw horizontal grid lines with their values, and the axis' name upright beside them."""
        for tick in ticks:
            y = self.y(tick)
            self.add(line(self.left, y, self.width - self.right, y, "grid"))
            self.add(words(self.left - 8, y + 4, text(tick), "tick", "end"))
        middle = (self.top + self.height - self.bottom) / 2
        self.add(
            f'<text class="label" text-anchor="middle" transform="translate(14 {middle:.1f}) '
            f'rotate(-90)">{escape(label)}</text>'
        )

    def x_axis(self, ticks: Sequence[float], label: str, text: Format, *, grid: bool = False) -> None:
        """Draw the base line, values under it, and the axis' name below."""
        base = self.height - self.bottom
        self.add(line(self.left, base, self.width - self.right, base, "axis"))
        for tick in ticks:
            x = self.x(tick)
            self.add(
                line(x, self.top if grid else base, x, base if grid else base + 4, "grid" if grid else "axis")
            )
            self.add(words(x, base + 18, text(tick), "tick", "middle"))
        self.add(words((self.left + self.width - self.right) / 2, self.height - 8, label, "label", "middle"))

    def render(self, title: str) -> str:
        """Return the <svg> element; ``title`` is what a screen reader says."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(title, quote=True)}">' + "".join(self.marks) + "</svg>"
        )


def line(x1: float, y1: float, x2: float, y2: float, kind: str, colour: int | None = None) -> str:
    """Return one straight line."""
    style = "" if colour is None else f' style="stroke:{paint(colour)}"'
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{style}/>'


def words(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    """Return one line of text."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def dot(x: float, y: float, colour: int, note: str, radius: float = 4.0) -> str:
    """Return a point with a wider, unseen circle around it, so that the mouse finds it."""
    return (
        f'<g class="dot"><title>{escape(note)}</title><circle class="aim" cx="{x:.1f}" cy="{y:.1f}" r="11"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{paint(colour)}"/></g>'
    )


def paint(colour: int) -> str:
    """Return the CSS colour of a series."""
    return f"var(--s{colour % N_COLOURS})"


def standalone(chart: str) -> str:
    """Return a chart as a file of its own: with its namespace, and the light colours of the report."""
    rules = [rule for rule in STYLE.splitlines() if rule.lstrip().startswith("svg ")]
    rules = [part.strip() for rule in rules for part in rule.split("} ") if part.strip().startswith("svg ")]
    colours = STYLE[STYLE.index(":root {") : STYLE.index("@media")]
    css = colours + "\n".join(rule if rule.endswith("}") else rule + "}" for rule in rules)
    css += "\nsvg { background: var(--card); font-family: system-ui, sans-serif; }"
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    return chart.replace("<svg ", head, 1).replace(">", f"><style>{css}</style>", 1) + "\n"


def with_legend(chart: str, series: Sequence[Series]) -> str:
    """Return a chart with the names of its series above it, in as many rows as they need, for a file of its
    own."""
    start = chart.index('viewBox="0 0 ')
    size = chart[start + 13 : chart.index('"', start + 9)]
    wide, high = size.split()
    left, row, places = 66.0, 0, []
    for s in series:
        width = 30 + 6.8 * len(s.name)
        if left + width > float(wide) and left > 66:
            left, row = 66.0, row + 1
        places.append((left, row))
        left += width
    marks = []
    for s, (x, at) in zip(series, places):
        y = -16 - 17 * (row - at)
        marks.append(
            f'<rect x="{x:.1f}" y="{y}" width="9" height="9" rx="2" style="fill:{paint(s.colour)}"/>'
        )
        marks.append(words(x + 13, y + 8.5, s.name, "tick"))
    height = 24 + 17 * row
    box = f'viewBox="0 -{height} {wide} {int(high) + height}"'
    return chart.replace(f'viewBox="0 0 {size}"', box, 1).replace("</svg>", "".join(marks) + "</svg>")


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    x_ticks: Sequence[float] | None = None,
    x_text: Format | None = None,
    y_text: Format | None = None,
) -> str:
    """Return lines through points: learning curves, a metric against its cut-off."""
    frame, xs, ys = _frame(series, x_log, x_ticks, from_zero=True)
    frame.y_axis(ys, y_label, y_text or decimals(ys))
    frame.x_axis(xs, x_label, x_text or decimals(xs))
    for s in series:
        path = "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in zip(s.x, s.y))
        dashed = ";stroke-dasharray:5 4" if s.colour >= N_COLOURS else ""
        frame.add(f'<path class="line" d="{path}" style="stroke:{paint(s.colour)}{dashed}"/>')
    many = max((len(s.x) for s in series), default=0) > 40
    for s in series:
        for i, (x, y) in enumerate(zip(s.x, s.y)):
            frame.add(dot(frame.x(x), frame.y(y), s.colour, _note(s, i), 1.5 if many else 3.0))
    return frame.render(title)


def scatter_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_log: bool = True,
    x_text: Format | None = None,
) -> str:
    """Return named points with vertical intervals: speed against quality."""
    frame, xs, ys = _frame(series, x_log, None, from_zero=False)
    frame.y_axis(ys, y_label, decimals(ys))
    frame.x_axis(xs, x_label, x_text or decimals(xs), grid=True)
    points = [(s, i, frame.x(x), frame.y(y)) for s in series for i, (x, y) in enumerate(zip(s.x, s.y))]
    taken = [
        (px - 7, px + 7, py) for _, _, px, py in points
    ]  # left, right and height of what names must not cover
    for s, i, px, py in points:
        if s.low:
            frame.add(line(px, frame.y(s.low[i]), px, frame.y(s.high[i]), "whisker", s.colour))
        frame.add(dot(px, py, s.colour, _note(s, i), 5.5))
        left, y = _place(s.name, px, py, taken, frame.width)
        wide = 6.6 * len(s.name)
        taken.append((left, left + wide, y))
        if y != py:  # a name that found no room beside its point is tied to it
            near = left - 3 if left > px else left + wide + 3
            frame.add(line(px, py, near, y, "leader", s.colour))
        frame.add(words(left, y + 4, s.name, "name"))
    return frame.render(title)


def bar_chart(groups: Sequence[str], series: Sequence[Series], *, title: str, y_label: str) -> str:
    """Return bars side by side in groups; ``series[i].y[g]`` is the bar of group g (``x`` is not read)."""
    top = max((high for s in series for high in (*s.y, *s.high)), default=1.0)
    ys = ticks(0.0, top or 1.0)
    frame = Frame((0.0, float(len(groups))), (0.0, ys[-1]), bottom=30)
    frame.y_axis(ys, y_label, decimals(ys))
    frame.x_axis([], "", str)
    slot = frame.x(1.0) - frame.x(0.0)
    width = min(34.0, 0.82 * slot / max(1, len(series)))
    base = frame.height - frame.bottom
    for g, group in enumerate(groups):
        middle = frame.x(g + 0.5)
        frame.add(words(middle, base + 18, group, "tick", "middle"))
        for i, s in enumerate(series):
            if math.isnan(s.y[g]):
                continue
            x, y = middle + (i - len(series) / 2) * width, frame.y(s.y[g])
            frame.add(
                f'<g class="bar"><title>{escape(_note(s, g))}</title><rect x="{x + 1:.1f}" y="{y:.1f}" '
                f'width="{width - 2:.1f}" '
                f'height="{max(base - y, 0.5):.1f}" rx="2" style="fill:{paint(s.colour)}"/></g>'
            )
            if s.low:
                centre = x + width / 2
                frame.add(line(centre, frame.y(s.low[g]), centre, frame.y(s.high[g]), "error"))
    return frame.render(title)


def forest_chart(series: Sequence[Series], *, title: str, x_label: str) -> str:
    """Return one row per series: its mean ``x[0]`` and its interval ``low[0]`` to ``high[0]``."""
    longest = max(len(s.name) for s in series)
    frame_left = min(220, 24 + int(7.2 * longest))
    xs = ticks(0.0, max(s.high[0] for s in series))
    step = max(30.0, min(52.0, 240 / len(series)))
    frame = Frame((0.0, xs[-1]), (0.0, 1.0), left=frame_left, right=64, height=round(64 + step * len(series)))
    frame.x_axis(xs, x_label, decimals(xs), grid=True)
    for i, s in enumerate(series):
        y = frame.top + step * (i + 0.55)
        frame.add(words(frame_left - 12, y + 4, s.name, "name", "end"))
        frame.add(line(frame.x(s.low[0]), y, frame.x(s.high[0]), y, "whisker", s.colour))
        frame.add(dot(frame.x(s.x[0]), y, s.colour, _note(s, 0), 5.5))
        frame.add(words(frame.x(s.high[0]) + 10, y + 4, f"{s.x[0]:.4f}".lstrip("0"), "value"))
    return frame.render(title)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values that span low..high.

    >>> ticks(0.0, 0.187)
    [0.0, 0.05, 0.1, 0.15, 0.2]
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 or powers of ten that span low..high.

    >>> log_ticks(3.0, 900.0)
    [1.0, 10.0, 100.0, 1000.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first >= 2:
        return [10.0**e for e in range(first, last + 1)]
    fine = [float(f"{m}e{e}") for e in range(first - 1, last + 2) for m in (1, 2, 5)]
    begin = max(i for i, t in enumerate(fine) if t <= low * 1.0001)
    end = min(i for i, t in enumerate(fine) if t >= high * 0.9999)
    return fine[begin : max(end, begin + 1) + 1]


def decimals(values: Sequence[float]) -> Format:
    """Return a format with as many decimals as tell the ticks apart."""
    steps = [b - a for a, b in pairwise(values)]
    digits = 0 if not steps else max(0, -math.floor(math.log10(min(steps)) + 1e-9))
    if steps and round(min(steps), digits) != round(min(steps), digits + 1):
        digits += 1
    return lambda value: f"{value:,.{digits}f}"


def _frame(
    series: Sequence[Series], x_log: bool, x_ticks: Sequence[float] | None, *, from_zero: bool
) -> tuple[Frame, list[float], list[float]]:
    xs = [x for s in series for x in s.x]
    ys = [y for s in series for y in (*s.y, *s.low, *s.high)]
    x_marks = (
        list(x_ticks)
        if x_ticks is not None
        else log_ticks(min(xs), max(xs))
        if x_log
        else ticks(min(0.0, *xs), max(xs))
    )
    y_marks = ticks(0.0 if from_zero else min(ys), max(ys))
    return Frame((x_marks[0], x_marks[-1]), (y_marks[0], y_marks[-1]), x_log), x_marks, y_marks


def _place(
    name: str, x: float, y: float, taken: Sequence[tuple[float, float, float]], width: int
) -> tuple[float, float]:
    """Return left end and height of a point's name, the nearest place where it covers nothing."""
    wide = 6.6 * len(name)
    places = [
        (x + 10 if right else x - 10 - wide, y + shift)
        for shift in (0, -15, 15, -29, 29, -43, 43)
        for right in (True, False)
    ]
    inside = [(left, at) for left, at in places if left >= 0 and left + wide <= width] or places
    free = (
        p
        for p in inside
        if all(p[0] > right or p[0] + wide < left or abs(p[1] - at) > 12 for left, right, at in taken)
    )
    return next(free, inside[0])


def _note(series: Series, i: int) -> str:
    return series.notes[i] if series.notes else f"{series.name}: {series.x[i]:g}, {series.y[i]:.4f}"

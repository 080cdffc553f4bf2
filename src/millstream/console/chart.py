"""Drawings as SVG: lines with bands, bars, and small lines without axes. Colours are names of static/colours.css, so
that a drawing follows the theme.

Every text that goes into a drawing passes `escaped`: names of models, items and rules are data.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import msgspec
from nicegui import ui

from millstream.console import text

COLOURS = ("one", "two", "three", "four", "five")
_LEFT, _BOTTOM, _TOP, _RIGHT = 46, 22, 8, 10
Point = tuple[float, float]


class Line(msgspec.Struct, frozen=True):
    """A line of points (x, y), which breaks where y is not finite. `band`: (low, high) a point, for what is not sure;
    `dots`: points alone, no line between them."""

    name: str
    points: Sequence[Point]
    band: Sequence[Point] = ()
    colour: str = ""
    dots: bool = False


def escaped(value: object) -> str:
    """A text as part of a drawing."""
    return html.escape(str(value), quote=True)


def draw(drawing: str, label: str) -> ui.element:
    """A drawing of this module on the page; `label` says to who cannot see it what it shows."""
    return ui.html(drawing, sanitize=False).props(f'role="img" aria-label="{escaped(label)}"').classes("drawing")


def legend(lines: Sequence[Line]) -> None:
    """The names of lines beside their colours."""
    with ui.element("div").classes("legend"):
        for line, colour in zip(lines, _colours(lines), strict=True):
            with ui.element("span").classes(colour):
                ui.element("span").classes("swatch")
                ui.label(line.name).style("display: inline")


def lines(
    lines: Sequence[Line],
    width: int = 560,
    height: int = 200,
    x: Callable[[float], str] = text.clock,
    y: Callable[[float], str] = text.number,
    low: float | None = None,
    high: float | None = None,
    marks: Sequence[float] = (),
    diagonal: bool = False,
    square: Point | None = None,
) -> str:
    """Lines over one axis each; `x`, `y`: how their numbers are written; `low`, `high`: ends of the y axis, where the
    data's do not say; `square`: ends of both axes; `marks`: dashed lines at these heights; `diagonal`: one from corner
    to corner."""
    points = [point for line in lines for point in line.points if _finite(point)]
    edges = [edge for line in lines for pair in line.band for edge in pair if math.isfinite(edge)]
    if not points:
        return _svg(width, height, "")
    xs, ys = [point[0] for point in points], [point[1] for point in points] + edges + list(marks)
    if square is not None:
        low, high = square
        xs = [low, high]
    left, right = min(xs), max(xs)
    right = right if right > left else left + 1.0
    bottom, top, steps = _ticks(min(ys) if low is None else low, max(ys) if high is None else high)

    if square is not None:
        left, right = bottom, top

    def at(point: Point) -> Point:
        across = _LEFT + (point[0] - left) / (right - left) * (width - _LEFT - _RIGHT)
        return across, height - _BOTTOM - (point[1] - bottom) / (top - bottom) * (height - _BOTTOM - _TOP)

    parts = [_grid(at((left, step))[1], width, y(step)) for step in steps]
    parts += [_marked(at((left, mark))[1], width) for mark in marks]
    if diagonal:
        (x0, y0), (x1, y1) = at((left, bottom)), at((right, top))
        parts.append(f'<path class="mark" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" fill="none"/>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        across = _LEFT + share * (width - _LEFT - _RIGHT)
        said = escaped(x(left + share * (right - left)))
        parts.append(f'<text x="{across:.1f}" y="{height - 5}" text-anchor="{anchor}">{said}</text>')
    for line, colour in zip(lines, _colours(lines), strict=True):
        parts.append(_drawn(line, colour, at, x, y))
    return _svg(width, height, "".join(parts))


def bars(
    names: Sequence[str], values: Sequence[float], width: int = 560, height: int = 160,
    y: Callable[[float], str] = text.number, colour: str = "one",
) -> str:  # fmt: skip
    """A bar a value; of the names as many are written as there is room for."""
    if not values:
        return _svg(width, height, "")
    _, top, steps = _ticks(0.0, max(max(values), 1e-12))
    room, tall = (width - _LEFT - _RIGHT) / len(values), height - _BOTTOM - _TOP
    parts = [_grid(height - _BOTTOM - step / top * tall, width, y(step)) for step in steps]
    every = max(1, math.ceil(len(values) * 52 / (width - _LEFT)))
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        size = max(0.0, value) / top * tall
        across = _LEFT + at * room
        parts.append(
            f'<rect class="bar {escaped(colour)}" x="{across + room * 0.12:.1f}" y="{height - _BOTTOM - size:.1f}" '
            f'width="{room * 0.76:.1f}" height="{size:.1f}" rx="1.5">'
            f"<title>{escaped(name)}: {escaped(y(value))}</title></rect>"
        )
        if at % every == 0:
            middle = across + room / 2
            parts.append(f'<text x="{middle:.1f}" y="{height - 5}" text-anchor="middle">{escaped(name)}</text>')
    return _svg(width, height, "".join(parts))


def spark(values: Sequence[float], width: int = 120, height: int = 28, colour: str = "one") -> str:
    """A small line without axes, from 0 up."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return _svg(width, height, "")
    top = max(*known, 1e-12)
    step = width / (len(known) - 1)
    points = [(at * step, height - 2 - value / top * (height - 4)) for at, value in enumerate(known)]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    area = f'<path class="band" d="M0 {height}L{path}L{width} {height}Z"/>'
    return _svg(width, height, f'<g class="{escaped(colour)}">{area}<path class="line" d="M{path}"/></g>')


def radar(axes: Sequence[str], shapes: Sequence[tuple[str, Sequence[float]]], size: int = 220) -> str:
    """A shape a name over axes from the middle, each value 0 to 1; the first axis points up."""
    width, middle, far = 460, 230.0, size * 0.5
    high = size * 0.62

    def at(axis: int, share: float) -> str:
        angle = 2 * math.pi * axis / len(axes) - math.pi / 2
        return f"{middle + math.cos(angle) * far * share:.1f} {high + math.sin(angle) * far * share:.1f}"

    def ring(shares: Sequence[float]) -> str:
        return "M" + "L".join(at(axis, max(0.04, min(1.0, share))) for axis, share in enumerate(shares)) + "Z"

    parts = [f'<path class="grid" fill="none" d="{ring([share] * len(axes))}"/>' for share in (1 / 3, 2 / 3, 1.0)]
    for axis, name in enumerate(axes):
        x, y = (float(one) for one in at(axis, 1.12).split())
        anchor = "middle" if abs(x - middle) < 5 else "start" if x > middle else "end"
        parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escaped(name)}</text>')
    for (name, shares), colour in zip(shapes, COLOURS * len(shapes), strict=False):
        ring_ = ring(shares)
        parts.append(
            f'<g class="{colour}"><path class="band" d="{ring_}"/><path class="line" d="{ring_}">'
            f"<title>{escaped(name)}</title></path></g>"
        )
    return _svg(width, size, "".join(parts))


def _drawn(line: Line, colour: str, at: Callable[[Point], Point], x: Callable[[float], str],
           y: Callable[[float], str]) -> str:  # fmt: skip
    parts = [f'<g class="{escaped(colour)}">']
    if line.band:
        pairs = [(point[0], *edge) for point, edge in zip(line.points, line.band, strict=True) if _finite(edge)]
        around = [at((a, high)) for a, _, high in pairs] + [at((a, low)) for a, low, _ in reversed(pairs)]
        parts.append(f'<path class="band" d="M{_path(around)}Z"/>' if around else "")
    if not line.dots:
        run: list[Point] = []
        for point in (*line.points, (0.0, math.nan)):
            if _finite(point):
                run.append(at(point))
            elif run:
                parts.append(f'<path class="line" d="M{_path(run if len(run) > 1 else run * 2)}"/>')
                run = []
    if line.dots or len(line.points) <= 40:
        for point in line.points:
            if _finite(point):
                (a, b), said = at(point), escaped(f"{line.name} {x(point[0])}: {y(point[1])}")
                parts.append(
                    f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{3 if line.dots else 2}"><title>{said}</title></circle>'
                )
    return "".join(parts) + "</g>"


def _path(points: Sequence[Point]) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _grid(height: float, width: int, said: str) -> str:
    return (
        f'<path class="grid" d="M{_LEFT} {height:.1f}H{width - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{escaped(said)}</text>'
    )


def _marked(height: float, width: int) -> str:
    return f'<path class="mark" d="M{_LEFT} {height:.1f}H{width - _RIGHT}"/>'


def _svg(width: int, height: int, inner: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" style="max-width: {width * 1.2:.0f}px" '
        f'xmlns="http://www.w3.org/2000/svg" aria-hidden="true">{inner}</svg>'
    )


def _colours(lines: Sequence[Line]) -> list[str]:
    return [line.colour or COLOURS[at % len(COLOURS)] for at, line in enumerate(lines)]


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _ticks(low: float, high: float) -> tuple[float, float, list[float]]:
    """(bottom, top, where lines go): about four steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= rough * 0.999)
    bottom, top = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return bottom, top, [bottom + step * at for at in range(round((top - bottom) / step) + 1)]

"""Drawings as SVG, readable on light and dark pages: lines over logarithmic axes, and bars."""

import math
from html import escape

STYLE = """\
<style>
svg { font-family: sans-serif; font-size: 13px }
.page { fill: #ffffff } .text { fill: #222222 } .faint { fill: #666666 } .grid { stroke: #dddddd; fill: none }
.bar { fill: #9aa7b8 } .ours { fill: #c8442c }
.s0 { stroke: #7a7a7a; fill: #7a7a7a } .s1 { stroke: #3566b0; fill: #3566b0 }
.s2 { stroke: #c8442c; fill: #c8442c } .s3 { stroke: #2f8f57; fill: #2f8f57 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 } .text { fill: #e6e6e6 } .faint { fill: #9a9a9a } .grid { stroke: #30363d }
.bar { fill: #5d6b7e } .ours { fill: #f0765c }
.s0 { stroke: #a8a8a8; fill: #a8a8a8 } .s1 { stroke: #7aa7f0; fill: #7aa7f0 }
.s2 { stroke: #f0765c; fill: #f0765c } .s3 { stroke: #5fc48a; fill: #5fc48a }
}
</style>"""
COLOURS = 4


def page(width, height, title, parts):
    """A whole drawing."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    lines = [head, f"<title>{escape(title)}</title>", STYLE, f'<rect class="page" width="{width}" height="{height}"/>']
    lines += [text(width / 2, 24, title, anchor="middle", size=15), *parts, "</svg>"]
    return "\n".join(lines) + "\n"


def text(x, y, words, anchor="start", css="text", size=13):
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def span(values):
    """The exponents of ten that hold all values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def lines(title, series, x_label, y_label):
    """`series` is (name, [(x, y)]), all positive; x in powers of two, y in powers of ten."""
    width, height, left, right, top, bottom = 760, 440, 70, 130, 44, 54
    xs = [x for _, points in series for x, _ in points]
    low, high = span([y for _, points in series for _, y in points])
    first, last = math.log2(min(xs)), max(math.log2(max(xs)), math.log2(min(xs)) + 1)
    across = lambda x: left + (math.log2(x) - first) / (last - first) * (width - left - right)  # noqa: E731
    down = lambda y: top + (high - math.log10(y)) / (high - low) * (height - top - bottom)  # noqa: E731
    parts = []
    for power in range(low, high + 1):
        y = down(10.0**power)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(text(left - 8, y + 4, f"{10.0**power:g}", "end", "faint"))
    for x in sorted(set(xs)):
        parts.append(f'<path class="grid" d="M{across(x):.1f} {top}V{height - bottom}"/>')
        parts.append(text(across(x), height - bottom + 18, f"{x}", "middle", "faint"))
    parts.append(text((left + width - right) / 2, height - 12, x_label, "middle"))
    parts.append(text(left, top - 8, y_label, "start", "faint"))
    taken = []
    for index, (name, points) in enumerate(series):
        css, points = f"s{index % COLOURS}", sorted(points)
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="{css}" style="fill:none" stroke-width="2.5" points="{path}"/>')
        parts += [f'<circle class="{css}" r="4" cx="{across(x):.1f}" cy="{down(y):.1f}"/>' for x, y in points]
        x, y = across(points[-1][0]) + 10, down(points[-1][1]) + 4
        # Names of lines that end close together stand one below the other.
        while any(abs(y - other) < 14 for other in taken):
            y += 1
        taken.append(y)
        parts.append(text(x, y, name))
    return page(width, height, title, parts)


def bars(title, rows, unit):
    """`rows` is (name, value, whether it is ours), drawn from zero."""
    left, length, step, top = 300, 330, 26, 44
    most = max(value for _, value, _ in rows)
    parts = []
    for index, (name, value, ours) in enumerate(rows):
        y = top + index * step
        parts.append(text(left - 8, y + 14, name, "end"))
        css = "ours" if ours else "bar"
        width = max(1.0, value / most * length)
        parts.append(f'<rect class="{css}" x="{left}" y="{y}" width="{width:.1f}" height="18"/>')
        parts.append(text(left + width + 8, y + 14, f"{value:.4g} {unit}", "start", "faint"))
    return page(left + length + 110, top + len(rows) * step + 16, title, parts)

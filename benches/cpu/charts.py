"""Drawings as SVG, by the project's own charts (cli/charts)."""

import json
import subprocess
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "target" / "release" / "draw"


def svg(chart):
    """The drawing of a chart as `ratplus_charts::Chart` reads it."""
    if not PROGRAM.is_file():
        raise OSError(f"{PROGRAM.name}: run `cargo build --release -p ratplus-benches --bin draw` first")
    return subprocess.run([PROGRAM], input=json.dumps(chart), check=True, capture_output=True, text=True).stdout


def lines(title, series, x_label, y_label):
    """`series` is (name, [(x, y)])."""
    series = [{"name": name, "points": sorted(points)} for name, points in series]
    panel = {"title": title, "series": series}
    return svg({"lines": {"panels": [panel], "x_label": x_label, "y_label": y_label}})


def bars(title, rows, unit):
    """`rows` is (name, value, whether it is ours)."""
    rows = [{"name": name, "value": value, "marked": ours} for name, value, ours in rows]
    return svg({"bars": {"title": title, "bars": rows, "unit": unit}})

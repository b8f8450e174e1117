"""A picture of connect latencies around a restart, one panel a contender, as SVG.

Written by hand to be small: a panel is a grid of two-pixel cells, and a cell that somebody's
connect falls into is drawn once, however many fall into it.
"""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_COLUMNS = 2
_WIDTH, _HEIGHT = 470, 150
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 24, 12, 22
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = _HEIGHT - _TOP - _BOTTOM
_CELL = 2
#: The scale of latencies: logarithmic, from 10 µs to 10 s.
_LOWEST_MS, _HIGHEST_MS = 0.01, 10_000.0
_DECADES = ((0.01, "10 µs"), (0.1, ""), (1, "1 ms"), (10, ""), (100, "0.1 s"), (1000, "1 s"))
_STEPS_MS = (100, 200, 500, 1000, 2000, 5000, 10_000)
_MOST_LABELS = 8
#: A label nearer than this to the right end would be cut off.
_LABEL_SHARE = 0.02
_CAPTION = 40
_STYLE = """
text{font:11px sans-serif;fill:#1f2328}
.t{font-weight:bold}
.g{stroke:#d0d7de;stroke-width:1}
.o{fill:#bf8700;fill-opacity:.22}
.c{stroke:#0969da}
.f{stroke:#cf222e}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.g{stroke:#30363d}.c{stroke:#58a6ff}
.f{stroke:#ff7b72}}
"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One restart: *points* are (ms after its begin, connect in ms, failed).

    *gap* is when nobody listened, on the same clock. *right_ms* is where the panel ends.
    """

    title: str
    points: Iterable[tuple[float, float, bool]]
    gap: tuple[float, float] | None
    left_ms: float
    right_ms: float


def picture(panels: Sequence[Panel]) -> str:
    """All panels, side by side, as one SVG document."""
    rows = -(-len(panels) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT + _CAPTION
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        "<title>Connect latency around a restart, one panel a contender</title>",
        f"<style>{_STYLE.strip()}</style>",
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, _COLUMNS)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">')
        parts += _panel(panel)
        parts.append("</g>")
    caption = (
        "Each cell: a connection came then (s after the restart began) and took so long to connect."
    )
    second = "Red at the top: it failed. Shaded: nobody listened."
    parts.append(f'<text x="{_LEFT}" y="{height - 22}">{caption}</text>')
    parts.append(f'<text x="{_LEFT}" y="{height - 7}">{second}</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)


def _panel(panel: Panel) -> list[str]:
    parts = [f'<text class="t" x="{_LEFT}" y="15">{html.escape(panel.title)}</text>']
    if panel.gap:
        left, right = (_x(panel, moment) for moment in panel.gap)
        parts.append(
            f'<rect class="o" x="{left:.0f}" y="{_TOP}" width="{max(1.0, right - left):.0f}" '
            f'height="{_PLOT_HEIGHT}"/>'
        )
    for decade, label in _DECADES:
        y = _TOP + _y(decade)
        parts.append(f'<path class="g" d="M{_LEFT} {y}h{_PLOT_WIDTH}"/>')
        if label:
            parts.append(f'<text x="{_LEFT - 4}" y="{y + 4}" text-anchor="end">{label}</text>')
    parts += _time_labels(panel)
    connected = [(due, connect) for due, connect, failed in panel.points if connect > 0]
    failed = [(due, _HIGHEST_MS) for due, _, lost in panel.points if lost]
    parts.append(_cells("c", panel, connected))
    parts.append(_cells("f", panel, failed))
    return parts


def _time_labels(panel: Panel) -> list[str]:
    span_ms = panel.right_ms - panel.left_ms
    step_ms = next((step for step in _STEPS_MS if span_ms / step <= _MOST_LABELS), _STEPS_MS[-1])
    first = math.ceil(panel.left_ms / step_ms)
    last = math.floor((panel.right_ms - span_ms * _LABEL_SHARE) / step_ms)
    y = _TOP + _PLOT_HEIGHT + 14
    return [
        f'<text x="{_x(panel, number * step_ms):.0f}" y="{y}" text-anchor="middle">'
        f"{number * step_ms / 1000:g} s</text>"
        for number in range(first, last + 1)
    ]


def _cells(kind: str, panel: Panel, values: Iterable[tuple[float, float]]) -> str:
    """The cells that the values fall into, those above each other as one stroke."""
    columns: dict[int, set[int]] = defaultdict(set)
    for due, connect in values:
        if panel.left_ms <= due <= panel.right_ms:
            column = int((_x(panel, due) - _LEFT) // _CELL)
            columns[column].add(_y(connect) // _CELL)
    strokes = [
        f"M{_LEFT + column * _CELL + 1} {_TOP + first * _CELL}v{(last - first + 1) * _CELL}"
        for column, cells in sorted(columns.items())
        for first, last in _runs(sorted(cells))
    ]
    return f'<path class="{kind}" stroke-width="{_CELL}" d="{"".join(strokes)}"/>'


def _runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbours among sorted numbers, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _x(panel: Panel, moment_ms: float) -> float:
    share = (moment_ms - panel.left_ms) / (panel.right_ms - panel.left_ms)
    return _LEFT + share * _PLOT_WIDTH


def _y(connect_ms: float) -> int:
    """Pixels below the top of the plot."""
    within = min(max(connect_ms, _LOWEST_MS), _HIGHEST_MS)
    share = math.log10(within / _LOWEST_MS) / math.log10(_HIGHEST_MS / _LOWEST_MS)
    return round((1 - share) * (_PLOT_HEIGHT - _CELL))

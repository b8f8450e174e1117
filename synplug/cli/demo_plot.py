"""The demo's picture: how long each connection took, over time."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from synplug.cli.demo_load import Attempt

_WIDTH, _PANEL, _LEFT, _TOP = 860, 220, 70, 50
_FLOOR_S, _CEILING_S = 0.00003, 10.0
_TICKS = ((0.0001, "0.1 ms"), (0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"))


def svg(panels: Sequence[tuple[str, Sequence[Attempt]]]) -> str:
    """A panel a side, one above the other, with the same scales."""
    end_s = max((one.at_s for _, attempts in panels for one in attempts), default=1.0)
    height = _TOP + len(panels) * (_PANEL + _TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="70" y="24" font-size="15">Time to connect, each connection a dot</text>',
    ]
    for number, (title, attempts) in enumerate(panels):
        lines += _panel(_TOP + number * (_PANEL + _TOP), title, attempts, end_s)
    return "\n".join([*lines, "</svg>", ""])


def _panel(top: int, title: str, attempts: Sequence[Attempt], end_s: float) -> list[str]:
    failed = sum(bool(one.failure) for one in attempts)
    words = html.escape(f"{title}: {len(attempts)} connections, {failed} failed")
    width = _WIDTH - _LEFT - 20
    lines = [
        f'<text x="{_LEFT}" y="{top - 6}">{words}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{width}" height="{_PANEL}" fill="none" '
        'stroke="#999"/>',
    ]
    for value_s, label in _TICKS:
        y = _y(top, value_s)
        lines.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for one in attempts:
        x = _LEFT + width * one.at_s / end_s
        y = _y(top, one.took_s)
        if one.failure:
            lines.append(
                f'<path d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6" stroke="#c00" '
                f'class="failed"><title>{html.escape(one.failure)}</title></path>'
            )
        else:
            lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="#27c"/>')
    lines.append(
        f'<text x="{_LEFT + width}" y="{top + _PANEL + 16}" text-anchor="end">{end_s:.1f} s</text>'
    )
    return lines


def _y(top: int, value_s: float) -> float:
    """Where a duration is drawn: a logarithmic scale."""
    value_s = min(max(value_s, _FLOOR_S), _CEILING_S)
    share = math.log(value_s / _FLOOR_S) / math.log(_CEILING_S / _FLOOR_S)
    return top + _PANEL * (1 - share)

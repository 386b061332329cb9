"""Bars and dots as SVG, from rows of numbers.

Small on purpose: rows one below the other, a bar (or, on a logarithmic axis, a dot) for each series
in a row, its number beside it. Colours follow the reader's colour scheme, and the background is the
picture's own, so that it can be read on any page.
"""  # noqa: INP001 - a module beside the documents, no package

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.results import in_words

__all__ = ["plot"]

_WIDTH, _LABELS, _NUMBERS = 760, 210, 76
"""Of the whole, of the rows' names, and what is left for numbers at the right."""
_THICK, _GAP, _TOP, _AXIS = 17, 14, 74, 28
"""Of a bar; between rows; above all rows; of a logarithmic axis' numbers."""
_STYLE = """\
svg { font: 13px system-ui, sans-serif; }
.back { fill: #ffffff; stroke: #d0d7de; }
text { fill: #1f2328; }
.soft { fill: #59636e; paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }
.grid { stroke: #d0d7de; }
.s0 { fill: #0072b2; } .s1 { fill: #d55e00; } .s2 { fill: #767676; }
@media (prefers-color-scheme: dark) {
  .back { fill: #161b22; stroke: #3d444d; }
  text { fill: #f0f6fc; }
  .soft { fill: #9198a1; stroke: #161b22; }
  .grid { stroke: #3d444d; }
  .s0 { fill: #56b4e9; } .s1 { fill: #f0a35e; } .s2 { fill: #a0a0a0; }
}"""


def plot(
    title: str,
    series: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    *,
    logarithmic: bool = False,
) -> str:
    """An SVG document. `rows` has a number for each of up to three series, all above zero where the
    axis is logarithmic; ValueError otherwise.
    """
    numbers = [number for row in rows.values() for number in row]
    if any(len(row) != len(series) for row in rows.values()) or not 1 <= len(series) <= 3:
        raise ValueError(f"{title}: rows need a number for each of {list(series)}, one to three")
    if logarithmic and min(numbers) <= 0:
        raise ValueError(f"{title}: {min(numbers)} has no logarithm")
    room = _WIDTH - _LABELS - _NUMBERS
    first = math.floor(math.log10(min(numbers))) if logarithmic else 0
    last = math.ceil(math.log10(max(numbers))) if logarithmic else 0
    group = len(series) * _THICK
    bottom = _TOP + len(rows) * (group + _GAP)
    height = bottom + (_AXIS if logarithmic else 0)
    parts = [*_head(title, series, height)]

    def along(number: float) -> float:
        """How far from the left edge of the field."""
        if logarithmic:
            return room * (math.log10(number) - first) / max(1, last - first)
        return room * number / max(numbers)

    if logarithmic:
        for power in range(first, last + 1):
            x = _LABELS + along(10.0**power)
            parts.append(_line(x, _TOP - 6, bottom - 6))
            parts.append(_text(x, height - 12, f"{10.0**power:,g}", "middle", "soft"))
    else:
        parts.append(_line(_LABELS, _TOP - 6, bottom - 6))
    for index, (name, row) in enumerate(rows.items()):
        top = _TOP + index * (group + _GAP)
        parts.append(_text(_LABELS - 10, top + group / 2 + 4, name, "end"))
        for kind, number in enumerate(row):
            y, end = top + kind * _THICK, _LABELS + along(number)
            parts.append(
                f'<circle class="s{kind}" cx="{end:.1f}" cy="{y + _THICK / 2:.1f}" r="5"/>'
                if logarithmic
                else f'<rect class="s{kind}" x="{_LABELS}" y="{y + 1}" '
                f'width="{along(number):.1f}" height="{_THICK - 2}"/>'
            )
            parts.append(_text(end + 9, y + _THICK - 4, in_words(float(number)), "start", "soft"))
    return "\n".join([*parts, "</svg>", ""])


def _head(title: str, series: Sequence[str], height: int) -> list[str]:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"',
        f'     width="{_WIDTH}" height="{height}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="back" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'<text x="16" y="26" font-weight="600" font-size="15">{escape(title)}</text>',
    ]
    left = 16.0
    for kind, name in enumerate(series):
        parts.append(f'<rect class="s{kind}" x="{left:.1f}" y="40" width="12" height="12"/>')
        parts.append(_text(left + 18, 51, name, "start"))
        left += 46 + 7.2 * len(name)
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x: float, top: float, bottom: float) -> str:
    return f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'

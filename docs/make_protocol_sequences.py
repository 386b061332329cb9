"""Write docs/protocol-sequences.md and its pictures from the scripts of docs/protocol_sequences.py.

The states beside the lines of life are those that the tables of `aiomigrate.protocol.tables` lead
to. Run it from the root of the repository, as `python -m docs.make_protocol_sequences`, whenever a
table or a script changes; a test compares the files with what `render` and `draw` return.
"""  # noqa: INP001 - a script beside the documents, no package

from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path

from docs.protocol_sequences import SEQUENCES, Arrow, Played, Sequence, play

__all__ = ["PAGE", "PICTURES", "draw", "main", "render"]

PAGE = Path(__file__).with_name("protocol-sequences.md")
PICTURES = PAGE.with_name("pictures")

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 200, 560, 62, 19
_COLOURS = {
    "main": "main",
    "lane 1": "first",
    "lane 2": "second",
    "query": "query",
    "fault": "second",
}
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 14px; text-anchor: middle }
.state { font: 11px ui-monospace, monospace }
.left { text-anchor: end }
.note { text-anchor: middle; font-style: italic; fill: #57606a }
.life { stroke: #8c959f; stroke-width: 1.5 }
.across { stroke: #8c959f; stroke-dasharray: 3 4 }
.arrow { stroke-width: 1.6; fill: none }
.main { stroke: #3f51b5 } .first { stroke: #0a7d5a } .second { stroke: #b35900 }
.query { stroke: #a1208e }
text.main { fill: #3f51b5 } text.first { fill: #0a7d5a } text.second { fill: #b35900 }
text.query { fill: #a1208e }
text { stroke: #ffffff !important; stroke-width: 4; paint-order: stroke; stroke-linejoin: round }
.card { fill: #ffffff; stroke: #d0d7de }
.lost { stroke-dasharray: 5 4 }
.break { stroke: #cf222e; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .note { fill: #9da7b3 } .life, .across { stroke: #6e7681 }
.main { stroke: #9fa8f5 } .first { stroke: #56d4a4 } .second { stroke: #f0a35e }
.query { stroke: #ec8fdc } .break { stroke: #ff7b72 }
text.main { fill: #9fa8f5 } text.first { fill: #56d4a4 } text.second { fill: #f0a35e }
text.query { fill: #ec8fdc }
.card { fill: #1f2329; stroke: #3d444d } text { stroke: #1f2329 !important }
}
"""


def draw(sequence: Sequence) -> str:
    """The picture, as SVG. No font is measured: it is the same on every machine."""
    played = play(sequence)
    height = _TOP + played.rows * _ROW + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" role="img">',
        f"<title>{escape(sequence.title)}</title>",
        f"<style>{_STYLE}</style>",
        "<defs>",
        *_heads(),
        "</defs>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
    ]
    for x, side in ((_LEFT, "source"), (_RIGHT, "destination")):
        parts.append(f'<text class="title" x="{x}" y="22">{side}</text>')
        parts.append(f'<line class="life" x1="{x}" y1="32" x2="{x}" y2="{height - 6}"/>')
    parts += _notes(played)
    for arrow in played.arrows:
        parts += _arrow(arrow, played)
    parts += _states(played)
    return "\n".join([*parts, "</svg>", ""])


def _heads() -> Iterator[str]:
    for name in dict.fromkeys(_COLOURS.values()):
        yield (
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8"'
            f' markerHeight="8" orient="auto"><path class="arrow {name}" d="M1 1 9 5 1 9"/>'
            "</marker>"
        )


def _notes(played: Played) -> Iterator[str]:
    middle = (_LEFT + _RIGHT) // 2
    for row, text in played.notes:
        y = _y(row)
        yield f'<line class="across" x1="20" y1="{y + 8}" x2="{_WIDTH - 20}" y2="{y + 8}"/>'
        yield f'<text class="note" x="{middle}" y="{y + 12}">{escape(text)}</text>'


def _arrow(arrow: Arrow, played: Played) -> Iterator[str]:
    colour = _COLOURS[arrow.connection]
    begin, end = (_LEFT, _RIGHT) if arrow.from_source else (_RIGHT, _LEFT)
    y = _y(arrow.begun)
    if arrow.ended is None:
        last = next(row for row, name in played.breaks if name == arrow.connection)
        x, y2 = (begin + end) // 2, _y(last)
        yield f'<line class="arrow lost {colour}" x1="{begin}" y1="{y}" x2="{x}" y2="{y2}"/>'
        yield f'<path class="break" d="M{x - 6} {y2 - 6}l12 12m-12 0 12-12"/>'
    else:
        y2 = _y(arrow.ended)
        yield (
            f'<line class="arrow {colour}" x1="{begin}" y1="{y}" x2="{end}" y2="{y2}"'
            f' marker-end="url(#{colour})"/>'
        )
    name = f"{arrow.connection}: " if arrow.connection.startswith("lane") else ""
    # Beside its beginning, and above the line that falls away from there.
    near = begin + 8 if arrow.from_source else begin - 8
    side = "" if arrow.from_source else " left"
    yield f'<text class="{colour}{side}" x="{near}" y="{y - 4}">{name}{escape(arrow.label)}</text>'


def _states(played: Played) -> Iterator[str]:
    before: defaultdict[tuple[bool, str], str] = defaultdict(str)
    for row, at_source, connection, state in played.states:
        if before[at_source, connection] == state:
            continue
        before[at_source, connection] = state
        x, side = (_LEFT - 12, " left") if at_source else (_RIGHT + 12, "")
        name = "" if connection in {"main", "query"} else f"{connection}: "
        yield (
            f'<text class="state{side} {_COLOURS[connection]}" x="{x}" y="{_y(row) + 4}">'
            f"{name}{escape(state)}</text>"
        )


def _y(row: int) -> int:
    return _TOP + row * _ROW


# The page

_INTRODUCTION = """\
# The protocol in pictures

Made by docs/make_protocol_sequences.py, which plays scripts through aiomigrate/protocol/tables.py:
beside the lines of life stand the [states](protocol-states.md) that these lead to, on either side.
Time goes down; an arrow begins where something is written and ends where it is read.
"""


def render() -> str:
    """The whole page, as Markdown."""
    sections = []
    for sequence in SEQUENCES:
        picture = f"{PICTURES.name}/sequence-{sequence.name}.svg"
        sections.append(
            f"## {sequence.title}\n\n{sequence.text}\n\n![{sequence.title}]({picture})\n"
        )
    return "\n".join([_INTRODUCTION, *sections])


def main() -> None:
    """Write the page and its pictures."""
    PAGE.write_text(render(), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for sequence in SEQUENCES:
        (PICTURES / f"sequence-{sequence.name}.svg").write_text(draw(sequence), encoding="utf-8")


if __name__ == "__main__":
    main()

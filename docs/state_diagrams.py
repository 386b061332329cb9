"""State diagrams as SVG, laid out by Graphviz.

Fonts differ from machine to machine, and a layout with them: what a picture says is compared by
`arrows`, not by its bytes.
"""  # noqa: INP001 - beside the documents, no package

import re
from collections.abc import Collection, Mapping
from html import unescape

__all__ = ["Arrows", "arrows", "draw"]

Arrows = Mapping[tuple[str, str], str]
"""The label of the arrow from one state to another."""

_STYLE = """
.card { fill: #ffffff; stroke: #d0d7de }
text { font: 12px system-ui, sans-serif; fill: #24292f }
.node path, .node polygon { fill: #eef0fb; stroke: #3f51b5; stroke-width: 1.2 }
.first path { stroke-width: 2.6 } .last path { fill: #e2e5e9; stroke: #57606a }
.edge path { stroke: #57606a; fill: none; stroke-width: 1.2 }
.edge polygon { stroke: #57606a; fill: #57606a }
.edge text { font-size: 11px; stroke: #ffffff; stroke-width: 4; paint-order: stroke }
.ending path, .ending polygon { stroke: #b6bec8 } .ending polygon { fill: #b6bec8 }
.ending text { fill: #6e7781 }
@media (prefers-color-scheme: dark) {
.card { fill: #1f2329; stroke: #3d444d } text { fill: #e6edf3 }
.node path, .node polygon { fill: #2b3050; stroke: #9fa8f5 }
.last path { fill: #30363d; stroke: #9da7b3 }
.edge path { stroke: #9da7b3 } .edge polygon { stroke: #9da7b3; fill: #9da7b3 }
.edge text { stroke: #1f2329 } .ending path, .ending polygon { stroke: #57606a }
.ending polygon { fill: #57606a } .ending text { fill: #9da7b3 }
}
"""
_ENDING = {"Failed", "Closed", "Aborted", "Abandoning"}
"""Where many arrows lead that a reader does not look for first: they are drawn paler."""


def draw(title: str, labelled: Arrows, first: str, finals: Collection[str]) -> str:
    """The picture. Arrows into states that end a connection early are paler."""
    import pygraphviz

    graph = pygraphviz.AGraph(directed=True, strict=False)
    graph.graph_attr.update(bgcolor="transparent", ranksep="0.35", nodesep="0.3", pad="0.25")
    graph.node_attr.update(
        shape="box", style="rounded", fontname="Helvetica", fontsize="12", height="0.32"
    )
    graph.edge_attr.update(fontname="Helvetica", fontsize="11", arrowsize="0.7")
    for begin, end in labelled:
        for state in (begin, end):
            kind = "first" if state == first else "last" if state in finals else ""
            graph.add_node(state, **{"class": kind})
    for (begin, end), label in labelled.items():
        # A long list takes several lines.
        text = re.sub(r"((?:[^,]+, ){2}[^,]+), ", r"\1,\\n", label)
        ending = end in _ENDING
        kind = "ending" if ending else ""
        # What is not an ending is to be straight.
        graph.add_edge(begin, end, label=text, weight=1 if ending else 8, **{"class": kind})
    drawn = graph.draw(format="svg", prog="dot").decode()
    return _ours(drawn, title)


def _ours(drawn: str, title: str) -> str:
    """The drawing with our own colours, and with nothing of the machine that it was made on."""
    size = re.search(r'viewBox="0\.00 0\.00 ([\d.]+) ([\d.]+)"', drawn)
    if size is None:
        raise ValueError(f"{title}: Graphviz drew no picture")
    width, height = size[1], size[2]
    body = drawn[drawn.index("<g id=") :]
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    body = re.sub(r' (fill|stroke|font-family|font-size|xml:space|id)="[^"]*"(?= |/?>)', "", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img">\n<style>{_STYLE}</style>\n'
        f'<rect class="card" x="0.5" y="0.5" width="{float(width) - 1:.2f}"'
        f' height="{float(height) - 1:.2f}" rx="6"/>\n{body}'
    )


def arrows(picture: str) -> dict[tuple[str, str], str]:
    """What a picture shows: the arrows between states, and their labels."""
    found = {}
    for edge in re.findall(r'<g class="edge.*?</g>', picture, re.DOTALL):
        begin, end = unescape(edge.partition("<title>")[2].partition("</title>")[0]).split("->")
        lines = re.findall(r"<text[^>]*>(.*?)</text>", edge)
        found[begin, end] = " ".join(unescape(line) for line in lines)
    return found

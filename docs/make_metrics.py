"""Write docs/reference/metrics.md from the registry of a service.

Run it from the root of the repository, as `python -m docs.make_metrics`, whenever a metric changes;
a test compares the file with what `render` returns.
"""  # noqa: INP001 - a script beside the documents, no package

from pathlib import Path

from aiomigrate.api import Service
from aiomigrate.api.metrics import Metrics

__all__ = ["PAGE", "main", "render"]

PAGE = Path(__file__).parent / "reference" / "metrics.md"

_INTRODUCTION = """\
# Metrics

Made by docs/make_metrics.py from aiomigrate/api/metrics.py. Change that, not this page.

`GET /metrics` answers in Prometheus' text format. Counters are of all migrations since the service
began, and their names end in `_total`; what a running migration does has the labels of its VM.

| metric | type | labels | what it is |
| --- | --- | --- | --- |
"""


def render() -> str:
    """The whole page, as Markdown."""
    text = Metrics(Service()).render().decode()
    labels = _labels()
    kinds: dict[str, str] = {}
    meanings: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, meanings[name] = line.split(" ", 3)
        elif line.startswith("# TYPE "):
            _, _, name, kinds[name] = line.split(" ", 3)
    rows = [
        f"| `{name}` | {kinds[name]} | {labels[name]} | {meaning} |"
        for name, meaning in meanings.items()
    ]
    return _INTRODUCTION + "\n".join(rows) + "\n"


def _labels() -> dict[str, str]:
    """The labels of each metric, by its name in the text."""
    found = {}
    for family in Metrics(Service()).collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
    return found


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Write docs/reference/rest.md from the service's own OpenAPI document.

Run it from the root of the repository, as `python -m docs.make_rest`, whenever an operation or a
model changes; a test compares the file with what `render` returns.
"""  # noqa: INP001 - a script beside the documents, no package

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiomigrate.api.openapi import CLOUD_HYPERVISORS, make_document

__all__ = ["PAGE", "main", "render"]

PAGE = Path(__file__).parent / "reference" / "rest.md"

_INTRODUCTION = """\
# The REST API

Made by docs/make_rest.py from the OpenAPI document (`GET /openapi.json`). Change the models of
aiomigrate/api, not this page. What cannot be read off them is in [the service](../api.md).

Bodies and answers are JSON. Operations marked *Cloud Hypervisor* are its own, with its bodies and
statuses: its client works with them.
"""


def render() -> str:
    """The whole page, as Markdown."""
    document = make_document()
    schemas = document["components"]["schemas"]
    lines = [_INTRODUCTION, "## Operations", ""]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += _operation(f"{method.upper()} {path}", operation)
    lines += ["## Models", ""]
    for name, schema in sorted(schemas.items(), key=lambda item: item[0].lstrip("_")):
        lines += _model(name, schema)
    return "\n".join(lines)


def _operation(title: str, operation: Mapping[str, Any]) -> Iterator[str]:
    mark = " *Cloud Hypervisor.*" if CLOUD_HYPERVISORS in operation.get("tags", ()) else ""
    yield from (f"### {title}", "", f"{_sentence(operation['summary'])}{mark}", "")
    rows = [
        (f"query `{one['name']}`", _sentence(one["description"]))
        for one in operation.get("parameters", ())
    ]
    if (body := operation.get("requestBody")) is not None:
        rows.append(("body", _type(body["content"]["application/json"]["schema"])))
    for status, answer in operation["responses"].items():
        kinds = [
            f"{_type(content['schema'])} ({kind})"
            if kind != "application/json"
            else _type(content["schema"])
            for kind, content in answer.get("content", {}).items()
        ]
        rows.append((f"answer {status}", ": ".join([answer["description"], *kinds])))
    yield from _table(("part", "what it is"), rows)


def _model(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"### {name.lstrip('_')}", "")
    if text := schema.get("description"):
        yield from (_line(text), "")
    if "enum" in schema:
        yield from ("One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + ".", "")
    required = schema.get("required", ())
    rows = []
    for field, details in schema.get("properties", {}).items():
        texts = [_sentence(details["description"])] if details.get("description") else []
        if field in required:
            texts.append("*Required.*")
        elif "default" in details:
            texts.append(f"Default: `{details['default']}`.")
        rows.append((f"`{field}`", _type(details), " ".join(texts)))
    if rows:
        yield from _table(("member", "type", "what it is"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to models."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2].lstrip("_")
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    kind: str = schema.get("type", "anything")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if "const" in schema:
        return f"`{str(schema['const']).lower()}`"
    return kind


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(_line(cell).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _line(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    text = _line(text)
    return text if text.endswith((".", ":")) else f"{text}."


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()

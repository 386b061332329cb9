"""The API for people to read: one page, made from the OpenAPI document, without any other file."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["make_reference"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font-family: ui-monospace, monospace; font-size: .9em }
section { border-top: 1px solid #8884; padding: .5rem 0 }
h2 { font-size: 1.1rem } table { border-collapse: collapse; width: 100% }
td { padding: .15rem .75rem .15rem 0; vertical-align: top } td:first-child { white-space: nowrap }
:root { color-scheme: light dark }
"""


def make_reference(document: Mapping[str, Any]) -> str:
    """HTML."""
    info = document["info"]
    return "".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width'>",
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            f"<p>{escape(info['description'])}</p>",
            "<p><a href='.'>Watch migrations</a> · <a href='openapi.json'>openapi.json</a></p>",
            *_sections(document),
            "</html>",
        ]
    )


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation['summary'])}.</p>"
            yield _table("Query", _query(operation))
            yield _table("Body", _fields(document, operation.get("requestBody")))
            yield _table("Answers", _answers(document, operation))
            yield "</section>"


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = (f"<tr><td><code>{name}</code><td>{text}" for name, text in rows)
    return f"<table><caption hidden>{title}</caption>{''.join(lines)}</table>"


def _query(operation: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"?{escape(one['name'])}=", escape(one["description"]))
        for one in operation.get("parameters", ())
    ]


def _fields(document: Mapping[str, Any], body: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if body is None:
        return []
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema = document["components"]["schemas"][name]
    required = schema.get("required", ())
    rows = []
    for field, details in schema["properties"].items():
        text = escape(details.get("description", ""))
        if field in required:
            text += " <em>Required.</em>"
        elif "default" in details:
            text += f" Default: <code>{escape(str(details['default']))}</code>."
        rows.append((escape(field), text))
    return rows


def _answers(document: Mapping[str, Any], operation: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for status, answer in operation["responses"].items():
        text = escape(answer["description"])
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        if name := schema.get("$ref", "").rpartition("/")[2]:
            about = document["components"]["schemas"][name].get("description", "")
            text += f": {escape(about)}" if about else ""
        rows.append((status, text))
    return rows

"""A report as one HTML file that needs nothing else: its data, and the page's own scripts, inside.

Scripts that are modules cannot import one another inside of one file, so they are put together
here: without their imports and exports, in an order in which each finds what it needs.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

from aiomigrate._version import __version__
from aiomigrate.web.assets import ASSETS

__all__ = ["render_html"]

_MODULES = ("format", "dom", "words", "history", "plots", "view", "report")
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def render_html(
    *,
    title: str,
    owner: str | None,
    error: str,
    report: Mapping[str, Any] | None,
    account: Mapping[str, Any] | None,
) -> str:
    """The page of one migration.

    `title` is what it was, `owner` who has the VM ("source", "destination", "unknown"; None while
    that is still to be seen) and `error` why it failed; both may be empty. `report` is
    `Report.as_dict()` of one that succeeded, else `account` is what `Account.as_dict()` says.

    The file asks nobody for anything: its policy forbids all but the scripts and styles in it.
    """
    style = ASSETS["uPlot.min.css"].text + ASSETS["page.css"].text
    plots, script = ASSETS["uPlot.iife.min.js"].text, _together()
    policy = (
        f"default-src 'none'; script-src {_hash(plots)} {_hash(script)}; "
        f"style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    return Template(ASSETS["report.html"].text).substitute(
        policy=policy,
        title=_text(f"{title or 'A migration'} – aiomigrate"),
        version=_text(__version__),
        style=style,
        plots=plots,
        script=script,
        data=_data(
            {"title": title, "owner": owner, "error": error, "report": report, "account": account}
        ),
    )


def _text(text: str) -> str:
    """In ASCII: what comes from JSON may be half of a surrogate pair, which no file can hold."""
    return escape(text).encode("ascii", "xmlcharrefreplace").decode()


def _together() -> str:
    modules = (ASSETS[f"{name}.js"].text for name in _MODULES)
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", module)) for module in modules)


def _hash(text: str) -> str:
    """As a Content-Security-Policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(report: Mapping[str, Any]) -> str:
    """JSON within a script element, which nothing in it can end: `<` is not in it."""
    return json.dumps(_finite(report), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """`value` without infinities, which JSON does not know; they mean that nothing is known."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {name: _finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case _:
            return value

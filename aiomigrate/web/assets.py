"""The files of the page, read once, when this is imported: nothing on an event loop reads a disk.

Scripts are modules as they are; nothing is built. `vendor/` holds what is not ours, with its
licence and `vendor.json`, which names each package, its version and the hash of each file.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType

__all__ = ["ASSETS", "PAGE", "POLICY", "Asset"]

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}

POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
)
"""The page's Content-Security-Policy: no other host is asked, nothing in the page's text is a
script, and no other page can put this one's buttons below its own."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    content: bytes
    content_type: str

    @property
    def etag(self) -> str:
        """A name for these very bytes, as in HTTP's ETag."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    @property
    def text(self) -> str:
        """Its characters."""
        return self.content.decode()


def _read(directory: Traversable) -> Iterator[tuple[str, Asset]]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _read(entry)
        elif kind := _TYPES.get(f".{entry.name.rpartition('.')[2]}"):
            yield entry.name, Asset(entry.read_bytes(), kind)


ASSETS = MappingProxyType(dict(_read(files(__package__) / "assets")))
"""Each by its name, which is the last part of its path."""

PAGE = ASSETS["page.html"]
"""What a browser opens first."""

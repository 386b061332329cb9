"""The site of `make docs`: it builds strictly, and every link in it leads somewhere.

Reading it asks no other host for anything.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

import aiomigrate

ROOT = Path(__file__).parents[2]
_FETCHED = {("img", "src"), ("link", "href"), ("script", "src"), ("source", "srcset")}
"""What a browser loads without being asked; a link (`a href`) it only follows."""


@dataclass
class Page(HTMLParser):
    """What one page refers to, and what in it can be referred to."""

    text: str
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    mermaid: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value)
            elif name == "class" and "mermaid" in value.split():
                self.mermaid = True
            elif (tag, name) in _FETCHED:
                self.fetched.append(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)


@dataclass
class Site:
    """Every page of a built site, by its path below the root."""

    root: Path
    pages: dict[str, Page]

    def problems(self) -> Iterator[str]:
        """References that lead nowhere, each with its page."""
        for path, page in self.pages.items():
            for reference in page.links + page.fetched:
                # The page of a missing address is served anywhere: its links begin at the root.
                target = urlsplit(urljoin(f"/{path}", reference))
                if target.scheme or target.netloc:
                    continue
                file = unquote(target.path).lstrip("/") or "index.html"
                anchor = unquote(target.fragment)
                if not (self.root / file).is_file():
                    yield f"{path}: {reference} (no such file)"
                elif anchor and file in self.pages and anchor not in self.pages[file].anchors:
                    yield f"{path}: {reference} (no such anchor)"

    def foreign(self) -> Iterator[str]:
        """What a browser would ask another host for, each with its page."""
        for path, page in self.pages.items():
            yield from (f"{path}: {asset}" for asset in page.fetched if urlsplit(asset).netloc)
            if page.mermaid:  # the theme's script loads its renderer from elsewhere
                yield f"{path}: Mermaid"
        for sheet in self.root.rglob("*.css"):
            for asset in re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)", sheet.read_text()):
                if urlsplit(asset).netloc:
                    yield f"{sheet.relative_to(self.root)}: {asset}"


def placeless(page: Page) -> Iterator[str]:
    """Members of the public classes of a page that have no place of their own there."""
    told = [anchor for anchor in page.anchors if re.fullmatch(r"aiomigrate\.\w+", anchor)]
    assert len(told) > 10
    for anchor in told:
        item = getattr(aiomigrate, anchor.partition(".")[2])
        members = [*getattr(item, "__dataclass_fields__", ()), *getattr(item, "__members__", ())]
        members += [name for name, kind in vars(item).items() if inspect.isfunction(kind)]
        for name in members if inspect.isclass(item) else ():
            if not name.startswith("_") and f"{anchor}.{name}" not in page.anchors:
                yield f"{anchor}.{name}"


def read(root: Path) -> Site:
    files = sorted(root.rglob("*.html"))
    return Site(root, {str(file.relative_to(root)): Page(file.read_text()) for file in files})


def test_it_builds_and_every_reference_in_it_leads_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    site = read(tmp_path)
    assert {"index.html", "reference/index.html", "404.html"} <= set(site.pages)
    assert sum(len(page.links) for page in site.pages.values()) > 100
    assert list(site.problems()) == []
    assert list(site.foreign()) == []
    found = json.loads((tmp_path / "search" / "search_index.json").read_text())["docs"]
    assert "reference/library.html#aiomigrate.send" in {entry["location"] for entry in found}
    for page in ("reference/library.html", "reference/library-embedding.html"):
        assert list(placeless(site.pages[page])) == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('<a href="two.html#there">x</a>', []),
        ('<a href="two.html#here">x</a>', ["no such anchor"]),
        ('<a href="#here">x</a>', ["no such anchor"]),
        ('<a href="three.html">x</a>', ["no such file"]),
        ('<img src="three.png">', ["no such file"]),
        ('<a href="https://example.org/three.html#here">x</a>', []),
    ],
)
def test_what_leads_nowhere_is_found(tmp_path: Path, text: str, problems: list[str]) -> None:
    (tmp_path / "two.html").write_text('<h1 id="there">Two</h1>')
    (tmp_path / "one.html").write_text(text)
    assert [re.findall(r"\((.+)\)$", found)[0] for found in read(tmp_path).problems()] == problems


def test_another_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text(
        '<script src="https://cdn.example.org/x.js"></script><link href="//example.org/x.css">'
        '<a href="https://example.org">x</a><script src="x.js"></script><pre class="mermaid">'
    )
    (tmp_path / "x.css").write_text('a{src:url("https://example.org/f.woff")} b{src:url(f.woff)}')
    assert list(read(tmp_path).foreign()) == [
        "one.html: https://cdn.example.org/x.js",
        "one.html: //example.org/x.css",
        "one.html: Mermaid",
        "x.css: https://example.org/f.woff",
    ]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_a_page_beside_the_site_refers_to_files_that_are_there(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []

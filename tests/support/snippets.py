"""The blocks of code of a page, and the mark before each that says how it is checked.

A mark is an HTML comment in the line before a block, so that no reader sees it:

    <!-- run: TERMINAL, stays, status 1 -->          typed into a terminal; the output is compared
    <!-- type: TERMINAL, stays -->                   its first line, typed into what runs there
    <!-- output: TERMINAL, stays -->                 what a program there prints now
    <!-- parse -->                                   commands that are only parsed, not run
    <!-- instead: tests/x.py::test_y -->             commands that cannot run here; what is checked
    <!-- python: run -->                             executed, and checked by mypy
    <!-- file: NAME -->                              written to a file, for what follows
    <!-- from: PATH -->                              lines of a file of the repository
    <!-- picture -->                                 a drawing: nothing to run

and one that stands alone, `<!-- given: NAME -->`, prepares something. All blocks of a page are one
session, in order (tests/support/session.py). A block that `stays` leaves its program running. With
`clone` it runs in a fresh clone only (tests/fresh_clone.py), and is parsed elsewhere.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

__all__ = ["ROOT", "Block", "Command", "Mark", "blocks_of", "pages"]

ROOT = Path(__file__).resolve().parents[2]

_COMMENT = re.compile(r"<!--\s*([a-z]+)(?::\s*(.*?))?\s*-->\s*\Z")
_LANGUAGES = {
    "run": {"console"},
    "type": {"console"},
    "output": {"console"},
    "parse": {"console"},
    "instead": {"console", "ini", "sh"},
    "python": {"python"},
    "from": {"python", "ini"},
    "file": {"python", "json", "sh"},
    "picture": {"text", "mermaid"},
    "given": {""},
}
"""What a mark can stand before."""


@dataclass(frozen=True)
class Mark:
    """How a block is checked."""

    kind: str
    words: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """A terminal, a file, a test."""
        return self.words[0] if self.words else ""

    @property
    def stays(self) -> bool:
        """Whether the program runs on after the block."""
        return "stays" in self.words

    @property
    def listens(self) -> str:
        """The address that is to be listened on when the block is over, or nothing."""
        return next((word[8:] for word in self.words if word.startswith("listens ")), "")

    @property
    def clone(self) -> bool:
        """Whether it runs in a fresh clone only."""
        return "clone" in self.words

    @property
    def status(self) -> int:
        """The exit status of the block's last command."""
        return next((int(word[7:]) for word in self.words if word.startswith("status ")), 0)


@dataclass(frozen=True)
class Command:
    """What is typed, without its prompt, and what is shown below it."""

    typed: str
    shown: str


@dataclass(frozen=True)
class Block:
    """A block of code, or (with an empty text) a mark that stands alone."""

    page: Path
    line: int
    language: str
    text: str
    mark: Mark | None

    @property
    def place(self) -> str:
        """Where it is, as compilers say it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def fault(self) -> str:
        """What is wrong with its mark, or nothing."""
        if self.mark is None:
            return f"{self.place}: no mark says how this block is checked"
        if self.mark.kind not in _LANGUAGES:
            return f"{self.place}: there is no mark {self.mark.kind!r}"
        if self.language not in _LANGUAGES[self.mark.kind]:
            return f"{self.place}: {self.mark.kind!r} does not go with {self.language!r}"
        return ""

    @property
    def commands(self) -> list[Command]:
        """Its `$ ` lines with what follows each; a backslash at the end goes on in the next."""
        if self.mark is not None and self.mark.kind == "type":
            typed, _, shown = self.text.partition("\n")
            return [Command(typed, shown)]
        found: list[Command] = []
        lines = iter(self.text.splitlines())
        for line in lines:
            if line.startswith("$ "):
                typed = line[2:]
                while typed.endswith("\\"):
                    typed = typed[:-1].rstrip() + " " + next(lines).strip()
                found.append(Command(typed, ""))
            else:
                assert found, f"{self.place}: output before a command"
                found[-1] = Command(found[-1].typed, f"{found[-1].shown}{line}\n")
        return found


def pages() -> list[Path]:
    """All pages whose blocks are checked."""
    return sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def blocks_of(page: Path) -> list[Block]:
    """Its blocks in order, and marks that stand alone."""
    found: list[Block] = []
    alone: Block | None = None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block" and (comment := _COMMENT.match(token.content.strip())):
            assert token.map is not None
            words = tuple(word.strip() for word in (comment[2] or "").split(",") if word.strip())
            alone = Block(page, token.map[0] + 1, "", "", Mark(comment[1], words))
            if alone.mark == Mark("given", words):
                found.append(alone)
                alone = None
        elif token.type in {"fence", "code_block"}:
            assert token.map is not None
            mark = alone.mark if alone is not None else None
            language = token.info.split()[0] if token.info.strip() else ""
            found.append(Block(page, token.map[0] + 1, language, token.content, mark))
            alone = None
        elif alone is not None:
            found.append(alone)  # a mark without its block
            alone = None
    return found if alone is None else [*found, alone]

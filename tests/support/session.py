r"""The console blocks of a page, typed into real terminals in order.

A terminal is bash on a pseudo-terminal, and an emulator that keeps what a person sees. What a page
shows below a command is compared with that, word by word: numbers with their units and identifiers
need not be the same, `...` stands for any text in a line, and alone in a line for any lines; blank
lines, a plural and the progress of a bar do not count. `^C` or `^\` alone in a line is that key,
pressed once all above it is seen. A command with nothing below it may print what it likes. The
ports of a page become free ones.
"""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import pexpect  # type: ignore[import-untyped]  # it ships no types
import pyte

from tests.support.cloud_hypervisor import listens
from tests.support.snippets import Block
from tests.support.sockets import free_port

__all__ = ["Session", "pattern"]

_COLUMNS, _LINES = 250, 60
_PROMPT = re.compile(r"(?:\(\S+\) )?<prompt (\d+)>\n\Z")  # behind an active environment's name
_KEY = re.compile(r"^\^([C\\])$\n?", re.MULTILINE)
_PORT = re.compile(r"\b(?:tcp:[\w.]+|https?://[\w.]+):(\d{4,5})\b")
_NUMBER = r"\b\d[\d,.:+T-]*(?: ?(?:B|[KMGT]iB|us|ms|s|min|h)(?:/s)?\b| ?%)?"
_LOOSE = {
    "any": (r"\.\.\.", r"[^\n]*?"),
    "identifier": (r"\b[0-9a-f]{8,}\b", r"[0-9a-f]{8,}"),
    "number": (_NUMBER, _NUMBER),
    "count": (r"\b(?:connection|iteration|lane)s?\b", r"(?:connection|iteration|lane)s?"),
    "bar": (r"[━╸╺]+ *", r"[━╸╺]* *"),
}
_LOOSE_PARTS = re.compile("|".join(f"(?P<{name}>{it})" for name, (it, _) in _LOOSE.items()))
_RUNNER = """
import ast, asyncio, inspect, sys
code = compile(sys.stdin.read(), sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
result = eval(code, {"__name__": "__main__"})
if inspect.iscoroutine(result):
    asyncio.run(result)
"""


def pattern(shown: str) -> str:
    """A regular expression for output that is as good as what is shown."""
    parts = []
    for line in (line.strip() for line in shown.splitlines()):
        if line == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        elif line:
            at, made = 0, ""
            for loose in _LOOSE_PARTS.finditer(line):
                made += _spaced(line[at : loose.start()]) + _LOOSE[str(loose.lastgroup)][1]
                at = loose.end()
            parts.append(rf" *{made}{_spaced(line[at:])} *\n")
    return "".join(parts)


def _spaced(text: str) -> str:
    """The text, with as many blanks as there may be between its words."""
    return re.sub(r"(?:\\ )+", " +", re.escape(text))


class Session:
    """Terminals by name, in one directory. A context manager."""

    def __init__(self, directory: Path, environment: dict[str, str], timeout_s: float) -> None:
        self.directory = directory
        self._environment = environment
        self._timeout_s = timeout_s
        self._ports: dict[str, str] = {}
        self._terminals: dict[str, _Terminal] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for terminal in self._terminals.values():
            terminal.end()

    def perform(self, block: Block) -> None:
        """Do what a block says. AssertionError if something else comes of it."""
        mark = block.mark
        assert mark is not None
        if mark.kind == "file":
            (self.directory / mark.subject).write_text(self.local(block.text), encoding="utf-8")
        elif mark.kind == "python":
            self._execute(block)
        elif mark.kind == "output":
            self._expect(block, self._terminal(mark.subject), block.text, mark.stays, mark.status)
        else:
            for name in mark.subject.split("+"):
                terminal = self._terminal(name)
                *before, last = block.commands
                for command in before:
                    terminal.type(self.local(command.typed))
                    self._expect(block, terminal, command.shown, stays=False, status=0)
                terminal.type(self.local(last.typed))
                self._expect(block, terminal, last.shown, mark.stays, mark.status)

    def local(self, text: str) -> str:
        """The page's text with the ports of this session."""
        for found in _PORT.finditer(text):
            self._ports.setdefault(found[1], str(free_port()))
        return re.sub(r":(\d{4,5})\b", lambda at: f":{self._ports.get(at[1], at[1])}", text)

    def _terminal(self, name: str) -> "_Terminal":
        if name not in self._terminals:
            terminal = _Terminal(self.directory, self._environment, self._timeout_s)
            self._terminals[name] = terminal
        return self._terminals[name]

    def _expect(
        self, block: Block, terminal: "_Terminal", shown: str, stays: bool, status: int
    ) -> None:
        """Wait until that is seen, and, unless the program stays, it has ended well."""
        try:
            keys = list(_KEY.finditer(shown))
            at = 0
            for key in keys:
                terminal.wait(pattern(self.local(shown[at : key.start()])))
                terminal.press(key[1])
                at = key.end()
            if stays:
                terminal.wait(pattern(self.local(shown[at:])))
                self._listening(block)
                return
            got, seen = terminal.wait_prompt()
        except TimeoutError as error:
            raise AssertionError(f"{block.place}: shown\n{shown}\nseen\n{error}") from None
        assert got == status, f"{block.place}: exit status {got}, not {status}:\n{seen}"
        if shown[at:].strip():
            begin = "^" if keys else r"\A"  # after a key what was above it may have changed
            same = re.search(rf"{begin}{pattern(self.local(shown[at:]))}\Z", seen, re.MULTILINE)
            assert same, f"{block.place}: shown\n{shown}\nseen\n{seen}"

    def _listening(self, block: Block) -> None:
        """Wait until somebody listens where the block says; that can only be polled."""
        assert block.mark is not None
        scheme, _, place = self.local(block.mark.listens).partition(":")
        end = time.monotonic() + self._timeout_s
        while scheme and not (
            (self.directory / place).is_socket() if scheme == "unix" else listens(f"tcp:{place}")
        ):
            assert time.monotonic() < end, f"{block.place}: nobody listens on {place}"
            time.sleep(0.02)

    def _execute(self, block: Block) -> None:
        """Run a Python block, `await` at its top level and all, with the session's own Python."""
        done = subprocess.run(
            ["python", "-c", _RUNNER, block.place],
            input=self.local(block.text),
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=self._timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{block.place}: {done.stderr}"


def _hear_keys() -> None:
    """As at a terminal, also where we were started in the background: what is ignored then stays
    ignored in what is started here, and no bash can change that.
    """
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


class _Terminal:
    """Bash, and what can be seen of it."""

    def __init__(self, directory: Path, environment: dict[str, str], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._screen = pyte.Screen(_COLUMNS, _LINES)
        self._emulator = pyte.Stream(self._screen)
        self._process = pexpect.spawn(
            "bash",
            ["--noprofile", "--norc", "--noediting"],
            cwd=str(directory),
            env={**environment, "PS1": "<prompt $?>", "PS2": "", "TERM": "xterm"},
            echo=False,
            encoding="utf-8",
            dimensions=(_LINES, _COLUMNS),
            preexec_fn=_hear_keys,
        )
        self.wait_prompt()

    def type(self, line: str) -> None:
        """Type into whatever runs, on an empty screen."""
        self._screen.reset()
        self._process.sendline(line)

    def press(self, key: str) -> None:
        """With Control."""
        self._process.sendcontrol(key)

    def wait_prompt(self) -> tuple[int, str]:
        """Wait until the shell has its prompt: (exit status, what was seen before)."""
        seen = self._look_for(_PROMPT)
        found = _PROMPT.search(seen)
        assert found is not None
        return int(found[1]), seen[: found.start()]

    def wait(self, wanted: str) -> None:
        """Wait until that is seen; TimeoutError also if the program has ended before."""
        seen = self._look_for(re.compile(rf"^{wanted}|{_PROMPT.pattern}", re.MULTILINE))
        if not re.search(f"^{wanted}", seen, re.MULTILINE):
            raise TimeoutError(seen)

    def end(self) -> None:
        """Of the shell and of what is in its foreground."""
        with suppress(OSError):
            os.killpg(os.tcgetpgrp(self._process.child_fd), signal.SIGKILL)
        self._process.close(force=True)

    def _look_for(self, wanted: re.Pattern[str]) -> str:
        """What is seen once it matches."""
        end = time.monotonic() + self._timeout_s
        while True:
            lines = (line.rstrip() for line in self._screen.display)
            seen = "".join(f"{line}\n" for line in lines if line)
            if wanted.search(seen):
                return seen
            try:
                said = self._process.read_nonblocking(1 << 16, max(0, end - time.monotonic()))
            except (pexpect.TIMEOUT, pexpect.EOF):
                raise TimeoutError(seen) from None
            self._emulator.feed(said)

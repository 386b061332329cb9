"""Every command and snippet of README, docs and examples is checked, each as its mark says.

tests/support/snippets.py has the marks, tests/support/session.py how output is compared.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from aiomigrate.cli.app import app
from aiomigrate.cli.kernels import cache_directory
from tests.cli.conftest import make_vm
from tests.support.cloud_hypervisor import Guest, Installation, find_installation
from tests.support.session import Session, pattern
from tests.support.snippets import ROOT, Block, Mark, blocks_of, pages

GENERATED = {
    f"docs/{name}.md"
    for name in (
        "protocol-extensions",
        "protocol-sequences",
        "protocol-states",
        "reference/command-line",
        "reference/metrics",
        "reference/rest",
    )
}
"""Pages that a program makes, and a test compares with it."""
NEVER_RUN = {
    "cp": "into directories of the system",
    "curl": "a host of the reader's",
    "pip": "from a package index",
    "python3": "an environment below /opt",
    "ssh": "a host of the reader's",
    "systemctl": "no test boots systemd",
    "systemd-analyze": "where systemd is",
}
"""Programs that a block may name that has another test instead, and what they would touch."""
PER_COMMAND_S = 180.0
"""More than any takes on a machine that has much else to do: the suite's own time."""
PAGES = [page for page in pages() if str(page.relative_to(ROOT)) not in GENERATED]
SESSIONS = [
    page
    for page in PAGES
    if any(block.mark and block.mark.kind in {"run", "python"} for block in blocks_of(page))
]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_mark_says_how_each_block_is_checked(page: Path) -> None:
    assert [block.fault for block in blocks_of(page) if block.fault] == []


def test_a_block_without_a_mark_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.snippets.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ ls\n```\n\n    indented\n\n<!-- run: one, stays -->\n```console\n$ ls\n```\n"
        "<!-- picture -->\n```console\n$ ls\n```\n<!-- wish -->\n```text\n```\n"
        "<!-- run -->\nText.\n"
    )
    assert [block.fault for block in blocks_of(page)] == [
        "page.md:1: no mark says how this block is checked",
        "page.md:5: no mark says how this block is checked",
        "",
        "page.md:12: 'picture' does not go with 'console'",
        "page.md:16: there is no mark 'wish'",
        "page.md:18: 'run' does not go with ''",
    ]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_command_of_ours_is_one(page: Path) -> None:
    """By the parsers that it is typed for, whether it is run or not."""
    for block in blocks_of(page):
        if (
            block.language == "console"
            and block.mark
            and block.mark.kind in {"run", "parse", "instead"}
        ):
            for command in block.commands:
                for words in simple_commands(command.typed):
                    understood(block, words)


@pytest.mark.parametrize("page", SESSIONS, ids=_name)
@pytest.mark.timeout(600)
def test_what_a_page_tells_to_type(page: Path, session: Session) -> None:
    for block in blocks_of(page):
        assert block.mark is not None
        if block.mark.kind == "given":
            given(block.mark.subject, session)
        elif (
            block.mark.kind in {"run", "type", "output", "python", "file"} and not block.mark.clone
        ):
            session.perform(block)


def given(what: str, session: Session) -> None:
    """Prepare what a page takes for granted."""
    programs = session.directory.parent / "programs"
    if what == "a stored VM":
        make_vm(session.directory / "vm")
    elif what == "Cloud Hypervisor":
        found = find_installation()
        if not isinstance(found, Installation):
            pytest.skip(found)
        if found.dialect == "v52":
            pytest.skip(f"the page is written for v53 on, not for {found.version}")
        provide(found, programs, session.directory, "")
    elif what == "Cloud Hypervisor v52":
        vmm, remote = (
            os.environ.get(f"{name}_V52_BIN") for name in ("CLOUD_HYPERVISOR", "CH_REMOTE")
        )
        if not vmm or not remote:
            pytest.skip("CLOUD_HYPERVISOR_V52_BIN and CH_REMOTE_V52_BIN name no v52")
        provide(Installation(vmm, remote, "v52"), programs, session.directory, "-v52")
    else:
        pytest.fail(f"nothing is known of {what!r}")


def provide(found: Installation, programs: Path, directory: Path, suffix: str) -> None:
    """A version of Cloud Hypervisor as the page calls it, and a kernel to boot.

    Its vCPUs need a shim on some machines (tests/interop/guest), and no seccomp for that.
    """
    guest = Guest.build(programs)
    (directory / "guest.elf").write_bytes(guest.kernel.read_bytes())
    vmm = f'LD_PRELOAD={guest.shim} exec {found.vmm} --seccomp false "$@"'
    for name, line in (("cloud-hypervisor", vmm), ("ch-remote", f'exec {found.remote} "$@"')):
        program = programs / f"{name}{suffix}"
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_what_is_quoted_or_tested_elsewhere_is_there(page: Path) -> None:
    for block in blocks_of(page):
        if block.mark is None:
            continue
        if block.mark.kind == "from":
            quoted = (ROOT / block.mark.subject).read_text(encoding="utf-8")
            there = any(textwrap.indent(block.text, " " * n) in quoted for n in (0, 4, 8))
            assert there, f"{block.place}: not in {block.mark.subject}"
        if block.mark.kind == "instead":
            path, _, name = block.mark.subject.partition("::")
            tests = {
                node.name
                for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert name.startswith("test_"), block.place
            assert name in tests, f"{block.place}: no {block.mark.subject}"


def test_theirs_are_commands_of_ch_remote() -> None:
    """Its parser looks at each; what it says after that is that nobody listens."""
    remote = os.environ.get("CH_REMOTE_BIN")
    if not remote:
        pytest.skip("CH_REMOTE_BIN names no ch-remote")
    for page in PAGES:
        for block in blocks_of(page):
            if block.language != "console" or "$ " not in block.text:
                continue
            for words in (one for c in block.commands for one in simple_commands(c.typed)):
                if words[0] == "ch-remote":
                    done = subprocess.run(
                        [remote, *words[1:]], capture_output=True, text=True, check=False
                    )
                    assert "No such file or directory" in done.stdout + done.stderr, block.place


def test_python_is_typed(tmp_path: Path) -> None:
    """By mypy, as strictly as our own code; `await` may stand at the top of a block."""
    for page in PAGES:
        for block in blocks_of(page):
            if block.mark and block.mark.kind == "python":
                body = textwrap.indent(block.text, "    ")
                name = re.sub(r"\W", "_", block.place)
                (tmp_path / f"{name}.py").write_text(f"async def block() -> None:\n{body}")
    assert list(tmp_path.glob("README*.py"))
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a shell line, without assignments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("<>"):
            next(lexer)
        elif set(word) <= set(";&|()"):
            commands.append([])
        elif commands[-1] or not re.fullmatch(r"\w+=.*", word):
            commands[-1].append(word)
    return [command for command in commands if command]


def understood(block: Block, words: list[str]) -> None:
    """Fail unless the program would take them, or something runs it for real."""
    assert block.mark is not None
    program, *arguments = words
    if program == "aiomigrate":
        parse(arguments)
    elif program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif block.mark.kind == "instead":
        assert Path(program).name in NEVER_RUN, f"{block.place}: nothing checks {program}"
    elif block.mark.kind == "parse":
        assert program == "ch-remote", f"{block.place}: nothing parses {program}"


def parse(arguments: list[str]) -> None:
    """As `aiomigrate` does it, down to the command, which is not called."""
    command = get_command(app)
    context = command.make_context("aiomigrate", arguments)
    while isinstance(command, TyperGroup):
        left = [*context._protected_args, *context.args]
        name, found, arguments = command.resolve_command(context, left)
        assert found is not None
        command = found
        context = command.make_context(name, arguments, parent=context)


def test_a_command_that_is_none_is_found() -> None:
    parse(["offload", "snapshot", "unix:out.sock", "--into", "vm"])
    for arguments, complaint in (
        (["sent", "vm"], "No such command"),
        (["send", "vm"], "Missing parameter: address"),
        (["send", "vm", "tcp:host:1", "--resumed"], "No such option"),
        (["send", "vm", "tcp:host:1", "--dialect", "v1"], "'v1' is not one of"),
    ):
        with pytest.raises(Exception, match=complaint):
            parse(arguments)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("moved 3.5 MiB in 20 ms", "moved 17 B in 1.25 s", True),
        ("moved 3.5 MiB", "sent 3.5 MiB", False),
        ("a 1\n...\nb", "a 2\nwhat\never\nb", True),
        ("a\n...\nb", "a\nwhat\never\n", False),
        ("id 0123abcd, v53", "id ffff0000ffff, v53", True),
        ("id 0123abcd, v53", "id ffff0000ffff, v52", False),
        ("a ... c", "a b b c", True),
        ("a ... c", "a b\nc", False),
        ("only (this)", "only (this)\nand that", False),
    ],
)
def test_output_is_compared_by_its_words(shown: str, printed: str, same: bool) -> None:
    assert bool(re.fullmatch(pattern(shown), f"{printed}\n")) == same


@pytest.mark.parametrize(
    ("text", "mark", "complaint"),
    [
        ("$ echo one\ntwo", Mark("run", ("a",)), "shown\ntwo\n\nseen\none\n"),
        ("$ false", Mark("run", ("a",)), "exit status 1, not 0"),
        ("$ cat\nword", Mark("run", ("a", "stays")), "shown\nword\n\nseen\n"),
        ("$ echo one\ntwo", Mark("run", ("a", "stays")), "shown\ntwo\n\nseen\none\n<prompt 0>"),
        ("raise SystemExit(3)", Mark("python", ("run",)), "docs/page.md:7: "),
    ],
)
def test_a_session_notices(
    session: Session, text: str, mark: Mark, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cat" in text:  # what it waits for never comes, however long that is
        monkeypatch.setattr(session._terminal("a"), "_timeout_s", 0.1)
    with pytest.raises(AssertionError) as caught:
        session.perform(Block(ROOT / "docs" / "page.md", 7, "console", text, mark))
    assert complaint in str(caught.value)


@pytest.fixture(scope="session")
def warm() -> None:
    """The kernels are compiled, as an operator's are: a page's first command need not say so."""
    program = Path(sys.executable).with_name("aiomigrate")
    subprocess.run([program, "warm-up"], check=True, capture_output=True)


@pytest.fixture
def session(tmp_path: Path, warm: None) -> Iterator[Session]:
    """With the programs of this environment, and a state of its own."""
    programs = tmp_path / "programs"
    programs.mkdir()
    place = tmp_path / "session"
    place.mkdir()
    (place / "examples").symlink_to(ROOT / "examples")
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "NUMBA_CACHE_DIR": str(cache_directory()),
    }
    with Session(place, environment, PER_COMMAND_S) as made:
        yield made

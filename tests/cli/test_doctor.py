import json

import pytest

from aiomigrate.cli import doctor, machine
from aiomigrate.cli.machine import Finding, Level
from aiomigrate.cli.status import ExitStatus
from tests.cli.conftest import Program

NAMES = {
    "system", "python", "libraries", "numba cache", "kvm", "userfaultfd", "pagemap scan",
    "populate", "tcp buffers", "open files", "locked memory", "huge pages",
    "transparent huge pages",
}  # fmt: skip


def test_it_looks_at_everything(program: Program) -> None:
    status, out, err = program("doctor", "--json").end()
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["ready"] is True
    assert {finding["name"] for finding in document["findings"]} == NAMES


def test_only_what_every_migration_needs_fails_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [
        Finding("a", Level.OK, "fine", required=True),
        Finding("b", Level.WARNING, "so so", "it is slower", "buy another", required=True),
        Finding("c", Level.MISSING, "none", "not needed"),
    ]
    monkeypatch.setattr(doctor, "probe_all", lambda: findings)
    assert doctor.run(as_json=False) is ExitStatus.DONE
    out = capsys.readouterr().out
    assert "it is slower" in out
    assert "→ buy another" in out
    findings.append(Finding("d", Level.MISSING, "none", required=True))
    assert doctor.run(as_json=False) is ExitStatus.FAILED
    assert doctor.run(as_json=True) is ExitStatus.FAILED


def test_absent_libraries_are_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "uvloop" else name)
    finding = machine.libraries()
    assert (finding.level, finding.required) == (Level.MISSING, True)
    assert finding.found == "without uvloop"


@pytest.mark.parametrize(
    ("limit", "level"), [(4096, Level.OK), (256, Level.WARNING), (32, Level.MISSING)]
)
def test_open_files(limit: int, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiomigrate.cli.machine.resource.getrlimit", lambda _: (limit, 4096))
    assert machine.open_files().level is level


def test_small_tcp_buffers_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: "4096 65536 1048576")
    finding = machine.tcp_buffers()
    assert finding.level is Level.WARNING
    assert "5.0 MiB/s" in finding.meaning


def test_nowhere_to_cache_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cache_directory", lambda: None)
    finding = machine.numba_cache()
    assert finding.level is Level.WARNING
    assert "NUMBA_CACHE_DIR" in finding.advice

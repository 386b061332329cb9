import json
from pathlib import Path

import pytest

from aiomigrate.cli import inspecting, recorded
from aiomigrate.cli.status import ExitStatus
from aiomigrate.memory.checksum import Checksum
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.storing import StoredVmWriter
from tests.support.captures import MEMORY, load
from tests.support.vms import ONE, config_of


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging stays as pytest has it."""
    monkeypatch.setattr(inspecting, "configure", lambda *_: None)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["one", "four", "paused", "postcopy", "v52_four", "v52_to_head"])
def test_recordings_are_read_as_they_were_sent(name: str, tmp_path: Path) -> None:
    """Against the independent reader of the same streams."""
    for stream in load(name).streams:
        if not stream.data:  # a lane that was closed before it was used
            continue
        recording = recorded.read(write(tmp_path / "stream", stream.data))
        expected = stream.messages
        assert [message.offset for message in recording.messages] == [m.start for m in expected]
        for mine, theirs in zip(recording.messages, expected, strict=True):
            if theirs.command == MEMORY and theirs.ranges and recording.kind != "fault":
                assert mine.ranges == len(theirs.ranges)
                assert mine.content_bytes == sum(length for _, length in theirs.ranges)
        broken = [message.start for message in expected if not message.complete]
        assert ([recording.broken_off.offset] if recording.broken_off else []) == broken


def test_a_recording_that_breaks_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lane = load("four").streams[1]
    path = write(tmp_path / "lane", lane.data[:-1])
    assert inspecting.run(str(path), verify=False, as_json=False) is ExitStatus.DONE
    out = capsys.readouterr().out
    assert "lane connection" in out
    assert f"breaks off in Memory at offset {lane.messages[-1].start}: 1 bytes are missing" in out
    write(path, lane.data[:10])
    assert inspecting.run(str(path), verify=False, as_json=True) is ExitStatus.DONE
    document = json.loads(capsys.readouterr().out)
    assert document["breaks_off_at"] == 2
    assert document["messages"][-1]["missing_bytes"] == 8


def test_lengths_that_cannot_be_true_end_it(tmp_path: Path) -> None:
    start = bytes([1, *bytes(15)])
    config = bytes([2, *bytes(7), *b"\xff" * 8])
    recording = recorded.read(write(tmp_path / "stream", start + config))
    assert [message.name for message in recording.messages] == ["Start", "Config"]
    assert recording.messages[-1].missing_bytes == (1 << 64) - 1


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "begins with nothing"), (b"\x28\xb5\x2f\xfd" * 5, "28 b5 2f fd")]
)
def test_what_is_no_stream(
    data: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "stream", data)
    assert inspecting.run(str(path), verify=False, as_json=False) is ExitStatus.USAGE
    assert why in capsys.readouterr().err


def test_a_stored_vm(vm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspecting.run(str(vm), verify=True, as_json=True) is ExitStatus.DONE
    document = json.loads(capsys.readouterr().out)
    assert document["total_bytes"] == 12 << 20
    assert [mapping["slot"] for mapping in document["mappings"]] == [0, 3]
    assert document["verified"] == []
    assert document["refusal"] is None
    assert inspecting.run(str(vm), verify=True, as_json=False) is ExitStatus.DONE
    assert "nothing was verified: no checksums are stored" in capsys.readouterr().out
    (vm / "state.json").unlink()
    assert inspecting.run(str(vm), verify=False, as_json=False) is ExitStatus.FAILED
    assert "state.json" in capsys.readouterr().err


def test_nothing_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspecting.run(str(tmp_path / "none"), verify=False, as_json=False) is ExitStatus.USAGE
    assert "there is no such file or directory" in capsys.readouterr().err


def test_a_compressed_vm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = VmConfig.parse(config_of(ONE))
    writer = StoredVmWriter(tmp_path / "vm")
    writer.prepare(config, compressed=True)
    writer.finish(config.memory_map.mappings[0], Checksum().text)
    writer.write_state(b"{}")
    writer.commit(False, "unix:/x")
    writer.confirm()
    writer.close()
    assert inspecting.run(str(tmp_path / "vm"), verify=True, as_json=False) is ExitStatus.DONE
    out = capsys.readouterr().out
    assert "memory-0.zst" in out
    assert "verified, equal to their checksums: memory-0.zst" in out
    assert "its memory is compressed: it can be restored or converted, not sent" in out
    assert "it can be sent" not in out

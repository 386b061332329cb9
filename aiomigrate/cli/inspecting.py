"""`aiomigrate inspect`: what a stored VM, or a recorded stream, holds."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiomigrate.cli import recorded
from aiomigrate.cli.logs import LogFormat, configure
from aiomigrate.cli.status import ExitStatus, complain, status_of
from aiomigrate.cli.text import one_line, size_text
from aiomigrate.errors import UsageError

__all__ = ["run"]

_MAX_LINES = 40
"""Messages that a person is shown of a long stream: the first and the last ones."""


def run(path: str, *, verify: bool, as_json: bool) -> ExitStatus:
    """Print what is there. A directory that cannot be trusted is told as an error, status 1."""
    configure(LogFormat.AUTO, 0)
    place = Path(path)
    try:
        found, lines = _look(place, verify=verify)
    except Exception as error:
        complain(error, verbosity=0)
        return status_of(error, begun=True)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for line in lines:
            print(line)
    return ExitStatus.DONE


def _look(place: Path, *, verify: bool) -> tuple[dict[str, Any], Iterable[str]]:
    if place.is_dir():
        vm = _stored_vm(place, verify=verify)
        return vm, _vm_lines(vm)
    if verify:
        raise UsageError(f"{place}: only a stored VM can be verified")
    try:
        recording = recorded.read(place)
    except FileNotFoundError:
        raise UsageError(f"{place}: there is no such file or directory") from None
    except recorded.NoStreamError as error:
        raise UsageError(f"{place} is neither a stored VM nor a recorded stream: {error}") from None
    return {"path": str(place), **recording.as_dict()}, _stream_lines(place, recording)


# A stored VM


def _stored_vm(place: Path, *, verify: bool) -> dict[str, Any]:
    from aiomigrate.memory.manifest import Taken
    from aiomigrate.memory.stored import StoredVm

    with StoredVm.open(place) as vm:
        verified = vm.verify() if verify else None
        files = [
            {**asdict(file), "allocated": os.stat(place / file.name).st_blocks * 512}
            for file in vm.manifest.files
        ]
        history = [
            {
                "event": "taken" if isinstance(entry, Taken) else "given",
                **asdict(entry),
                "at": entry.at.isoformat(),
            }
            for entry in vm.manifest.history
        ]
        return {
            "path": vm.path,
            "kind": "stored VM",
            "running": vm.manifest.running,
            "total_bytes": vm.config.memory_map.total_bytes,
            "mappings": [asdict(mapping) for mapping in vm.config.memory_map.mappings],
            "files": files,
            "history": history,
            "verified": verified,
            "compressed": vm.compressed,
            "refusal": vm.refusal(),
        }


def _vm_lines(vm: Mapping[str, Any]) -> Iterator[str]:
    yield f"stored VM {vm['path']}"
    state = "ran when it was taken" if vm["running"] else "paused"
    yield f"  {size_text(vm['total_bytes'])} of memory, {state}"
    yield ""
    yield "memory map"
    yield from _columns(
        ("slot", "guest physical address", "size", "zone", ""),
        [
            (
                str(mapping["slot"]),
                f"{mapping['gpa']:#x}",
                size_text(mapping["size"]),
                one_line(mapping["zone_id"]),
                "virtio-mem" if mapping["virtio_mem"] else "",
            )
            for mapping in vm["mappings"]
        ],
    )
    yield ""
    yield "files"
    yield from _columns(
        ("name", "size", "allocated", "checksum"),
        [
            (
                file["name"],
                size_text(file["size"]),
                size_text(file["allocated"]),
                file["checksum"] or "none stored",
            )
            for file in vm["files"]
        ],
    )
    yield ""
    yield "history" if vm["history"] else "no history"
    for entry in vm["history"]:
        yield f"  {entry['at']}  {one_line(_happened(entry))}"
    yield ""
    if vm["verified"] is not None:
        yield _verification(vm["verified"])
    refusal = vm["refusal"]
    if refusal:
        yield f"send refuses it: {one_line(refusal)}"
    elif vm["compressed"]:
        yield "its memory is compressed: it can be restored or converted, not sent"
    else:
        yield "it can be sent"


def _happened(entry: Mapping[str, Any]) -> str:
    if entry["event"] == "taken":
        return f"taken from {entry['source']}, {'' if entry['confirmed'] else 'not '}confirmed"
    how = "to run" if entry["running"] else "paused"
    return f"given to {entry['destination']}, {how}: {entry['outcome']}"


def _verification(names: Sequence[str]) -> str:
    if not names:
        return "nothing was verified: no checksums are stored"
    return f"verified, equal to their checksums: {', '.join(names)}"


# A recorded stream


def _stream_lines(place: Path, recording: recorded.Recording) -> Iterator[str]:
    count = len(recording.messages)
    yield (
        f"recorded stream {place}: {recording.kind} connection, {size_text(recording.size)}, "
        f"{count} messages"
    )
    yield ""
    shown = recording.messages
    if count > _MAX_LINES:
        half = _MAX_LINES // 2
        shown = (*shown[:half], *shown[-half:])
    rows = [
        (
            str(message.offset),
            message.name,
            str(message.payload_bytes),
            "" if message.ranges is None else str(message.ranges),
            "" if message.content_bytes is None else size_text(message.content_bytes),
        )
        for message in shown
    ]
    lines = list(_columns(("offset", "message", "payload", "ranges", "content"), rows))
    if count > _MAX_LINES:
        lines.insert(1 + _MAX_LINES // 2, f"  ... {count - _MAX_LINES} more (--json lists all)")
    yield from lines
    yield ""
    content = sum(message.content_bytes or 0 for message in recording.messages)
    yield f"{size_text(content)} of content in all"
    broken = recording.broken_off
    if broken is None:
        yield "it ends between two messages"
    else:
        yield (
            f"it breaks off in {broken.name} at offset {broken.offset}: "
            f"{broken.missing_bytes} bytes are missing"
        )


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()

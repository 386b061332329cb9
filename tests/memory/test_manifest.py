"""The manifest: round trips, strictness, and what the history forbids."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory.errors import ManifestError
from aiomigrate.memory.manifest import Given, Manifest, StoredFile, Taken

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
moments = st.datetimes(
    min_value=datetime(1990, 1, 1),  # noqa: DTZ001  # hypothesis wants it naive
    timezones=st.sampled_from([UTC]),
)
entries = st.one_of(
    st.builds(Taken, moments, text, st.booleans(), st.none() | text),
    st.builds(Given, moments, text, st.sampled_from(["done", "unknown", "failed"]), st.booleans()),
)
manifests = st.builds(
    Manifest,
    st.booleans(),
    st.lists(
        st.builds(
            StoredFile,
            text,
            st.integers(0, 2**63),
            st.none() | text,
            st.none() | st.integers(0, 2**63),
        ),
        max_size=3,
        unique_by=lambda file: file.name,
    ).map(tuple),
    st.lists(entries, max_size=3).map(tuple),
)
FULL = Manifest(
    True,
    (StoredFile("memory-0", 4096, "xxh3-128-1m:00"), StoredFile("state.json", 7, None)),
    (Taken(NOW, "tcp:a:1", True, "0f"), Given(NOW, "tcp:b:1", "failed", False)),
)


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    assert Manifest.decode(manifest.encode()) == manifest


def test_other_time_zones_are_read() -> None:
    raw = FULL.encode().replace(b"2026-08-01T12:00:00+00:00", b"2026-08-01T14:00:00+02:00")
    moment = Manifest.decode(raw).history[0].at
    assert moment == NOW
    assert moment.utcoffset() == timedelta(hours=2)


def changed(*path: str | int, to: object) -> bytes:
    """FULL with one member set to something else (or removed: `...`)."""
    document: Any = json.loads(FULL.encode())
    place = document
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(document).encode()


def packed(member: str, to: object) -> bytes:
    """A manifest of compressed memory with one member of its file set to something else."""
    document = json.loads(Manifest(True, (StoredFile("memory-0.zst", 9, None, 4096),)).encode())
    document["files"][0][member] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "the document is not an object"),
        (b"{}", "has no version"),
        (changed("version", to=4), "version 4 was written by a newer aiomigrate"),
        (changed("version", to=0), "there is no version 0"),
        (changed("version", to=True), "version of the document is no int"),
        (changed("running", to=1), "running of the document is no bool"),
        (changed("running", to=...), "has no running"),
        (changed("more", to=1), "unknown member 'more'"),
        (changed("files", to={}), "no list"),
        (changed("files", 0, to=1), "files\\[0\\] is not an object"),
        (changed("files", 0, "size", to=-1), "negative"),
        (changed("files", 0, "size", to=1.5), "no int"),
        (changed("files", 0, "checksum", to=1), "no str"),
        (changed("files", 0, "checksum", to=...), "has no checksum"),
        (changed("files", 1, "name", to="memory-0"), "listed twice"),
        (changed("history", 0, to=[]), "history\\[0\\] is not an object"),
        (changed("history", 0, "event", to="x"), "neither taken nor given"),
        (changed("history", 0, "event", to=...), "has no event"),
        (changed("history", 0, "confirmed", to=None), "no bool"),
        (changed("history", 0, "x", to=None), "unknown member"),
        (changed("history", 0, "at", to="yesterday"), "no ISO 8601"),
        (changed("history", 0, "at", to="2026-08-01T12:00:00"), "no time zone"),
        (changed("history", 1, "outcome", to="maybe"), "none of done, unknown, failed"),
        (changed("history", 1, "running", to=0), "no bool"),
        (changed("history", 0, "migration", to=7), "migration of history\\[0\\] is no str"),
        (changed("history", 0, "migration", to=...), "has no migration"),
        (changed("history", 1, "migration", to=None), "unknown member 'migration'"),
        (changed("version", to=1), "unknown member 'migration'"),
        (changed("files", 0, "memory_size", to=1), "unknown member 'memory_size'"),
        (changed("version", to=3), "files\\[0\\] has no memory_size"),
        (packed("memory_size", to=-1), "memory_size of files\\[0\\] is negative"),
        (packed("memory_size", to="1"), "memory_size of files\\[0\\] is no int"),
    ],
)
def test_what_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        Manifest.decode(raw)


def test_the_first_version_knows_no_migration() -> None:
    document = json.loads(FULL.encode())
    document["version"] = 1
    del document["history"][0]["migration"]
    manifest = Manifest.decode(json.dumps(document).encode())
    assert manifest.files == FULL.files
    assert manifest.history == (
        Taken(NOW, "tcp:a:1", True),
        Given(NOW, "tcp:b:1", "failed", False),
    )


def test_the_oldest_version_that_can_say_it_is_written() -> None:
    plain, compressed = StoredFile("a", 1, None), StoredFile("b", 1, None, 4096)
    assert json.loads(Manifest(True, (plain,)).encode())["version"] == 2
    assert json.loads(Manifest(True, (plain, compressed)).encode())["version"] == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.sampled_from(
        [("version",), ("running",), ("files",), ("history",), ("files", 0), ("history", 1)]
        + [("history", 0, key) for key in ("event", "at", "source", "confirmed")]
        + [("files", 0, key) for key in ("name", "size", "checksum")]
    ),
    json_values,
)
def test_any_member_can_be_anything(path: tuple[str | int, ...], value: object) -> None:
    try:
        Manifest.decode(changed(*path, to=value))
    except ManifestError as error:
        assert error.why in str(error)


@given(st.binary(max_size=50))
def test_any_bytes(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.decode(raw)


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ((), None),
        ((Taken(NOW, "tcp:a:1", True),), None),
        ((Taken(NOW, "tcp:a:1", False),), "taking from tcp:a:1 .* was not confirmed"),
        ((Given(NOW, "tcp:b:1", "failed", True),), None),
        ((Given(NOW, "tcp:b:1", "done", True),), "it was given to tcp:b:1"),
        ((Given(NOW, "tcp:b:1", "unknown", True),), "may have been given to tcp:b:1"),
        (
            (Given(NOW, "tcp:b:1", "done", True), Given(NOW, "tcp:c:1", "failed", True)),
            "it was given to tcp:b:1",
        ),
    ],
)
def test_refusal(history: tuple[Taken | Given, ...], why: str | None) -> None:
    refusal = Manifest(False, (), history).refusal()
    if why is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert re.search(why, refusal)


def test_files_are_found_by_name() -> None:
    assert FULL.file("state.json") == StoredFile("state.json", 7, None)
    assert FULL.file("other") is None
    summed = FULL.with_checksums({"state.json": "xxh3-128-1m:11"})
    assert [file.checksum for file in summed.files] == ["xxh3-128-1m:00", "xxh3-128-1m:11"]

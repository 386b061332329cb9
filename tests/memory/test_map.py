"""The memory map from Config: real shapes in, every hostile one refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiomigrate.memory.errors import ConfigError, RangeError
from aiomigrate.memory.map import MAX_MAPPINGS, Mapping, MemoryMap, VmConfig
from aiomigrate.memory.ranges import make_table

MIB = 1 << 20
ConfigMaker = Callable[..., bytes]
TOP = 2**64
GOOD: dict[str, Any] = {
    "slot": 3,
    "gpa": 0,
    "size": MIB,
    "zone_id": "mem0",
    "virtio_mem": False,
    "file_offset": 0,
}


def document(*mappings: object, **root: object) -> bytes:
    return json.dumps(
        {"memory_manager_data": {"guest_ram_mappings": list(mappings)}, **root}
    ).encode()


def test_the_map_is_sorted_and_the_bytes_are_kept(
    two_mappings: list[Mapping], make_config: ConfigMaker
) -> None:
    raw = make_config(two_mappings[::-1])
    config = VmConfig.parse(raw)
    assert config.raw == raw
    assert config.memory_map.mappings == tuple(two_mappings)
    assert config.memory_map.total_bytes == 3 * MIB
    assert config.memory_map.whole().tolist() == [(0, MIB), (1 << 32, 2 * MIB)]
    assert config.file_zones == frozenset()
    assert repr(config.memory_map) == "<MemoryMap 2 mappings, 3145728 bytes>"
    assert "raw" not in repr(config)


def test_zones_with_a_file_are_named(two_mappings: list[Mapping], make_config: ConfigMaker) -> None:
    zones = [{"id": "a"}, {"id": "b", "file": "/srv/b"}, {"id": "c", "file": None}]
    assert VmConfig.parse(make_config(two_mappings, zones)).file_zones == {"b"}


@pytest.mark.parametrize("vm_config", [None, {}, {"memory": None}, {"memory": {"zones": None}}])
def test_zones_may_be_missing(vm_config: object) -> None:
    assert VmConfig.parse(document(GOOD, vm_config=vm_config)).file_zones == frozenset()


def test_a_mapping_may_end_at_the_top_of_the_address_space() -> None:
    config = VmConfig.parse(document({**GOOD, "gpa": TOP - MIB}))
    assert config.memory_map.mappings[0].last == TOP - 1
    assert config.memory_map.check(make_table([(TOP - 4096, 4096)])) == 4096


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"{} x", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b"[]", "not an object"),
        (b"{}", "has no memory_manager_data"),
        (b'{"memory_manager_data": []}', "not an object"),
        (b'{"memory_manager_data": {}}', "has no guest_ram_mappings"),
        (b'{"memory_manager_data": {"guest_ram_mappings": {}}}', "not a list"),
        (document(), "maps no guest memory"),
        (document(7), "not an object"),
        (document(*[GOOD] * (MAX_MAPPINGS + 1)), "more than"),
        (document(GOOD, vm_config=1), "vm_config of the document is not an object"),
        (document(GOOD, vm_config={"memory": 1}), "memory of vm_config is not an object"),
        (document(GOOD, vm_config={"memory": {"zones": {}}}), "not a list"),
        (document(GOOD, vm_config={"memory": {"zones": [1]}}), "not an object"),
        (document(GOOD, vm_config={"memory": {"zones": [{"file": "x"}]}}), "has no id"),
        (document(GOOD, {**GOOD, "gpa": MIB}), "slot 3 twice"),
        (
            document(GOOD, {**GOOD, "slot": 4, "gpa": MIB - 4096}),
            "slots 3 and 4 overlap: 3 ends at 0xfffff, 4 begins at 0xff000",
        ),
        (document(GOOD, {**GOOD, "slot": 4}), "overlap"),
        (
            document(
                {**GOOD, "size": 2**62},
                {**GOOD, "slot": 4, "gpa": 2**62, "size": 2**62},
            ),
            "2\\^63 bytes or more together",
        ),
    ],
)
def test_documents_that_are_refused(raw: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        VmConfig.parse(raw)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size": 0}, "is empty"),
        ({"size": 4097}, "slot 3 is not aligned: its size 0x1001 is no multiple of 4096"),
        ({"gpa": 1}, "not aligned: its gpa 0x1"),
        ({"file_offset": 512}, "not aligned: its file_offset 0x200"),
        ({"gpa": TOP - 4096, "size": 8192}, "wraps"),
        ({"gpa": TOP}, "no unsigned 64-bit"),
        ({"size": TOP}, "no unsigned 64-bit"),
        ({"gpa": -4096}, "no unsigned 64-bit"),
        ({"slot": 2**32}, "no unsigned 32-bit"),
        ({"slot": True}, "not an integer"),
        ({"slot": 1.0}, "not an integer"),
        ({"gpa": "0"}, "not an integer"),
        ({"gpa": None}, "not an integer"),
        ({"zone_id": None}, "not a string"),
        ({"virtio_mem": 0}, "not true or false"),
        ({"file_offset": 2**63 - MIB}, "what a file can hold"),
    ],
)
def test_mappings_that_are_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        VmConfig.parse(document({**GOOD, **change}))


@pytest.mark.parametrize("member", sorted(GOOD))
def test_every_member_of_a_mapping_is_needed(member: str) -> None:
    mapping = {key: value for key, value in GOOD.items() if key != member}
    with pytest.raises(ConfigError, match=f"has no {member}"):
        VmConfig.parse(document(mapping))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, TOP) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["vm_config", "memory", "zones", "id", "file", "guest_ram_mappings", *GOOD]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=200))
@example(b'{"memory_manager_data": {"guest_ram_mappings": [')
def test_any_bytes_end_in_a_config_error(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        VmConfig.parse(raw)


@given(json_values, json_values)
def test_any_json_ends_in_a_config_or_a_config_error(mappings: object, zones: object) -> None:
    for entry in (mappings, [mappings], [{**GOOD}, mappings]):
        raw = json.dumps(
            {
                "memory_manager_data": {"guest_ram_mappings": entry},
                "vm_config": {"memory": {"zones": zones}},
            }
        ).encode()
        try:
            assert VmConfig.parse(raw).memory_map.total_bytes > 0
        except ConfigError as error:
            assert error.why in str(error)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "slot": st.integers(0, 3),
                "gpa": st.sampled_from([0, 1, 2, 3, 2**50, 2**52 - 1]).map(lambda n: n * 4096),
                "size": st.sampled_from([0, 1, 2, 2**51]).map(lambda n: n * 4096),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_map_is_taken_just_when_it_is_sound(entries: list[dict[str, int]]) -> None:
    spans = [(entry["gpa"], entry["gpa"] + entry["size"]) for entry in entries]
    sound = (
        len({entry["slot"] for entry in entries}) == len(entries)
        and all(low < high <= TOP for low, high in spans)
        and sum(high - low for low, high in spans) < 2**63
        and all(entry["size"] < 2**63 for entry in entries)
        and all(
            one == other or one[1] <= other[0] or other[1] <= one[0]
            for one in spans
            for other in spans
        )
        and len(set(spans)) == len(spans)
    )
    raw = document(*({**GOOD, **entry} for entry in entries))
    if sound:
        VmConfig.parse(raw)
    else:
        with pytest.raises(ConfigError):
            VmConfig.parse(raw)


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        ((0, 0), "is empty"),
        ((4096, TOP - 1), "wraps"),
        ((MIB, 1), "outside"),
        ((MIB - 1, 2), "crosses"),
    ],
)
def test_a_bad_range_is_named(config: VmConfig, pair: tuple[int, int], why: str) -> None:
    with pytest.raises(RangeError, match=why) as caught:
        config.memory_map.check(make_table([(0, 4096), pair, (1 << 40, 1)]))
    assert (caught.value.index, caught.value.gpa, caught.value.length) == (1, *pair)


def test_a_table_s_sum_is_bounded() -> None:
    huge = MemoryMap([Mapping(0, 0, 2**62, "a", False, 0)])
    with pytest.raises(RangeError, match="2\\^63"):
        huge.check(make_table([(0, 2**62)] * 2))
    assert huge.check(make_table([(0, 2**62), (0, 2**62 - 1)])) == 2**63 - 1


def test_too_many_mappings_are_refused_however_they_come() -> None:
    one = Mapping(0, 0, 4096, "a", False, 0)
    with pytest.raises(ConfigError, match="more than"):
        MemoryMap(replace(one, slot=k, gpa=k * 4096) for k in range(MAX_MAPPINGS + 1))

"""Parts of Config and State in text: what is there is kept to the byte, anything else refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory.errors import ConfigError
from aiomigrate.memory.snapshot_text import _members, join_config, read_state, split_config

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)
CPUID = [
    {"function": 1, "index": 0, "flags": 0, "eax": 7, "ebx": 0x0102_0304, "ecx": 1, "edx": 2},
    {"function": 0xB, "index": 0, "flags": 1, "eax": 0, "ebx": 1, "ecx": 2, "edx": 9},
]
MANAGER = {
    "memory_ranges": {"data": [{"gpa": 0, "length": 8192}, {"gpa": 1 << 32, "length": 4096}]},
    "guest_ram_mappings": [],
    "arch_mem_regions": [{"size": 18446744073709551615}],
}


def state_of(manager: object = MANAGER, root: object = None) -> bytes:
    own = {"clock": 1, "common_cpuid": CPUID} if root is None else root
    return json.dumps(
        {
            "snapshots": {"memory-manager": {"snapshot_data": {"state": json.dumps(manager)}}},
            "snapshot_data": {"state": json.dumps(own)},
        }
    ).encode()


@given(
    st.dictionaries(st.text(max_size=5), values, max_size=4),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([(",", ":"), (" , ", "\t:\n ")]),
    st.booleans(),
)
def test_members_are_found_as_they_are_written(
    members: dict[str, Any], indent: int | None, separators: tuple[str, str], ascii_only: bool
) -> None:
    text = " " + json.dumps(members, indent=indent, separators=separators, ensure_ascii=ascii_only)
    found = _members(text)
    assert {name: json.loads(value) for name, value in found.items()} == members
    assert all(value in text for value in found.values())
    assert list(found) == list(members)


def test_a_config_is_made_of_its_parts_and_taken_apart_again() -> None:
    text = '{ "payload": {"kernel" : "/é"}, "n": 1e3 }'
    state = read_state(state_of())
    assert state.ranges == [(0, 8192), (1 << 32, 4096)]
    raw = join_config(text.encode() + b"\n", state)
    assert raw.startswith(b'{"vm_config":' + text.encode() + b',"common_cpuid":[{"function"')
    assert raw.endswith(b',"memory_manager_data":' + json.dumps(MANAGER).encode() + b"}")
    assert json.loads(raw)["common_cpuid"] == CPUID
    assert split_config(raw, state) == text


def test_there_may_be_no_cpuid() -> None:
    state = read_state(state_of(root={"clock": 1}))
    raw = join_config(b"{}", state)
    assert raw.startswith(b'{"vm_config":{},"memory_manager_data":')
    assert split_config(raw, state) == "{}"
    root = json.loads(state_of())
    root["snapshot_data"] = None
    assert read_state(json.dumps(root).encode()).common_cpuid is None


def test_the_number_of_the_processor_does_not_matter() -> None:
    state = read_state(state_of())
    document = json.loads(join_config(b"{}", state))
    document["common_cpuid"][0]["ebx"] ^= 0xFF00_0000
    document["common_cpuid"][1]["edx"] = 77
    document["memory_manager_data"]["memory_ranges"] = {"data": []}  # an old list
    assert split_config(json.dumps(document).encode(), state) == "{}"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.update(more=1), "has 'more', which a file:// snapshot has no place for"),
        (lambda d: d.pop("vm_config"), "has no vm_config"),
        (lambda d: d["common_cpuid"][0].update(ebx=0x0102_0305), "common_cpuid of its Config"),
        (lambda d: d["common_cpuid"][1].update(ecx=3), "common_cpuid of its Config"),
        (lambda d: d.pop("common_cpuid"), "common_cpuid of its Config"),
        (lambda d: d["memory_manager_data"].update(boot_ram=1), "boot_ram of its Config"),
        (lambda d: d["memory_manager_data"].pop("arch_mem_regions"), "arch_mem_regions of its"),
    ],
)
def test_what_a_snapshot_would_lose(change: Any, why: str) -> None:
    state = read_state(state_of())
    document = json.loads(join_config(b"{}", state))
    change(document)
    with pytest.raises(ConfigError, match=why):
        split_config(json.dumps(document).encode(), state)


@pytest.mark.parametrize(
    "leaves",
    [
        1,
        None,
        [1],
        [[]],
        [{"function": 1, "ebx": "x"}],
        [{"function": [], "ebx": 1}],
        [{"ebx": {}}],
    ],
)
def test_what_is_no_cpuid_is_compared_as_it_is(leaves: object) -> None:
    state = read_state(state_of(root={"common_cpuid": leaves}))
    document = json.loads(join_config(b"{}", state))
    assert split_config(json.dumps(document).encode(), state) == "{}"
    document["common_cpuid"] = [{"function": 1, "ebx": 1}]
    with pytest.raises(ConfigError, match="common_cpuid of its Config"):
        split_config(json.dumps(document).encode(), state)


def with_ranges(data: object) -> bytes:
    return state_of({**MANAGER, "memory_ranges": {"data": data}})


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "state.json is not JSON"),
        (b"\xff", "state.json is not JSON"),
        ("{}".encode("utf-16"), "state.json is not JSON"),
        (b"[" * 100_000, "state.json is not JSON"),
        (b"[]", "state.json is not an object"),
        (b"{}", "snapshots of state.json is not an object"),
        (b'{"snapshots": {}}', "memory-manager is not an object"),
        (b'{"snapshots": {"memory-manager": {}}}', "memory-manager has no data"),
        (state_of(manager=[]), "memory-manager is not an object"),
        (state_of(manager={}), "memory_ranges of the State is not an object"),
        (with_ranges(1), "memory_ranges of the State are no list"),
        (with_ranges([1]), "is no range"),
        (with_ranges([{"gpa": 0, "length": 0}]), "is no range"),
        (with_ranges([{"gpa": -4096, "length": 4096}]), "is no range"),
        (with_ranges([{"gpa": True, "length": 4096}]), "is no range"),
        (with_ranges([{"gpa": 5, "length": 4096}]), "range at 0x5 is not whole pages"),
        (with_ranges([{"gpa": 0, "length": 4097}]), "not whole pages"),
        (state_of(root=[]), "the document is not an object"),
        (
            json.dumps(
                {
                    "snapshots": {"memory-manager": {"snapshot_data": {"state": {}}}},
                }
            ).encode(),
            "state of the State's memory-manager is no string",
        ),
    ],
)
def test_states_that_cannot_be_read(raw: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_state(raw)


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"null", "{}".encode("utf-16")])
def test_a_vm_config_that_is_none(raw: bytes) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is not"):
        join_config(raw, read_state(state_of()))


@given(values)
def test_any_state(value: object) -> None:
    with pytest.raises(ConfigError):
        read_state(json.dumps(value).encode())

import json
from pathlib import Path

import pytest

from aiomigrate import UsageError, VmConfig
from aiomigrate.probing.peer import memory, request
from aiomigrate.probing.vm import PAGE_BYTES, ProbeVm
from tests.support.hostile import SMALL, SMALL_CONFIG
from tests.support.image import PAGE


def stored(path: Path, config: bytes, state: bytes = b"{}") -> str:
    (path / "migration_config.json").write_bytes(config)
    (path / "state.json").write_bytes(state)
    return str(path)


def test_the_built_in_vm_is_one_that_our_receiver_reads() -> None:
    vm = ProbeVm.built_in()
    config = VmConfig.parse(vm.config)
    assert config.memory_map.total_bytes == 64 << 20
    assert [(m.gpa, m.size) for m in config.memory_map.mappings] == list(vm.mappings)
    assert json.loads(vm.state) == {"snapshots": {}, "snapshot_data": None}


def test_addresses_in_and_out_of_memory(tmp_path: Path) -> None:
    vm = ProbeVm.stored(stored(tmp_path, SMALL_CONFIG, b"the state"))
    assert (vm.config, vm.state) == (SMALL_CONFIG, b"the state")
    end = (4 << 30) + 16 * PAGE
    assert vm.page == (0, PAGE_BYTES)
    assert vm.block == (0, SMALL[0].size)
    assert vm.outside == (end, PAGE)
    assert vm.beyond == (end - PAGE, 2 * PAGE)
    assert vm.touching == (63 * PAGE, 2 * PAGE)
    gpa, length = vm.wrapping
    assert gpa == end - PAGE
    assert (gpa + length) % 2**64 == PAGE


def test_mappings_that_do_not_touch(tmp_path: Path) -> None:
    document = json.loads(SMALL_CONFIG)
    del document["memory_manager_data"]["guest_ram_mappings"][1]
    assert ProbeVm.stored(stored(tmp_path, json.dumps(document).encode())).touching is None


@pytest.mark.parametrize(
    "config",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"memory_manager_data": {"guest_ram_mappings": []}}',
        b'{"memory_manager_data": {"guest_ram_mappings": [{"gpa": null, "size": 1}]}}',
    ],
)
def test_a_directory_without_a_memory_map_is_refused(config: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no memory map in its Config"):
        ProbeVm.stored(stored(tmp_path, config))


def test_a_directory_that_is_no_stored_vm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory: no stored VM"):
        ProbeVm.stored(str(tmp_path))


def test_requests_as_the_wire_has_them() -> None:
    assert request(2, b"ab") == bytes.fromhex("0200 000000000000 0200000000000000") + b"ab"
    assert request(2, length=2**64 - 1)[8:] == b"\xff" * 8
    table = (7).to_bytes(8, "little") + (3).to_bytes(8, "little")
    assert memory((7, 3)) == request(4, table) + bytes(3)
    assert memory((7, 3), content=1) == request(4, table) + bytes(1)


@pytest.mark.parametrize("command", [5, 8])
def test_requests_that_would_give_a_vm_away_cannot_be_made(command: int) -> None:
    with pytest.raises(ValueError, match=f"never sends command {command}"):
        request(command)

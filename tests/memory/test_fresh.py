"""Memory for a VMM, in huge pages where the Config wants that and the machine has them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiomigrate.memory import fresh
from aiomigrate.memory.errors import ConfigError
from aiomigrate.memory.fresh import make_memfds
from aiomigrate.memory.guest import GuestMemory
from aiomigrate.memory.map import Mapping, VmConfig
from aiomigrate.memory.ranges import make_table

MIB = 1 << 20
HUGE = 2 * MIB
ConfigMaker = Callable[..., bytes]
MAPPINGS = [
    Mapping(0, 0, 4 * MIB, "small", False, 0),
    Mapping(3, 1 << 32, 4 * MIB, "huge", False, 0),
]


def _config(make_config: ConfigMaker, **huge: object) -> VmConfig:
    zones = [{"id": "small", "size": 0}, {"id": "huge", "size": 0} | huge]
    return VmConfig.parse(make_config(MAPPINGS, zones))


@contextmanager
def _made(config: VmConfig) -> Iterator[dict[int, int]]:
    fds = make_memfds(config)
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Says what the machine has of huge pages of 2 MiB."""
    monkeypatch.setattr(fresh, "_POOLS", tmp_path)

    def fill(free: int, resv: int = 0, nr_overcommit: int = 0, surplus: int = 0) -> None:
        pool = tmp_path / "hugepages-2048kB"
        pool.mkdir(exist_ok=True)
        counts = {"free": free, "resv": resv, "nr_overcommit": nr_overcommit, "surplus": surplus}
        for name, count in counts.items():
            (pool / f"{name}_hugepages").write_text(f"{count}\n")

    return fill


def test_memfds_of_the_mappings_sizes(make_config: ConfigMaker) -> None:
    config = _config(make_config)
    assert config.huge_pages == {}
    with _made(config) as fds:
        assert {slot: os.fstat(fd).st_size for slot, fd in fds.items()} == {
            0: 4 * MIB,
            3: 4 * MIB,
        }
        assert all(os.fstat(fd).st_blocks == 0 for fd in fds.values())
        assert not any(os.get_inheritable(fd) for fd in fds.values())


@pytest.mark.parametrize(
    ("huge", "expected"),
    [
        ({"hugepages": True}, {"huge": 0}),
        ({"hugepages": True, "hugepage_size": 1 << 30}, {"huge": 1 << 30}),
        ({"hugepages": True, "hugepage_size": None}, {"huge": 0}),
        ({"hugepages": False, "hugepage_size": HUGE}, {}),
        ({"hugepages": None}, {}),
    ],
)
def test_what_a_config_wants(
    huge: dict[str, object], expected: dict[str, int], make_config: ConfigMaker
) -> None:
    assert _config(make_config, **huge).huge_pages == expected


def test_a_config_without_zones_says_it_for_all_memory() -> None:
    raw = (
        b'{"vm_config": {"memory": {"hugepages": true}}, "memory_manager_data": '
        b'{"guest_ram_mappings": [{"slot": 0, "gpa": 0, "size": 4096, "zone_id": "mem0", '
        b'"virtio_mem": false, "file_offset": 0}]}}'
    )
    assert VmConfig.parse(raw).huge_pages == {"mem0": 0}


@pytest.mark.parametrize("name", [[], {}, None, 7])
def test_a_zone_whose_name_is_none_has_no_memory(name: object, make_config: ConfigMaker) -> None:
    zones = [{"id": name, "hugepages": True}, {"hugepages": True}]
    assert VmConfig.parse(make_config(MAPPINGS, zones)).huge_pages == {}


@pytest.mark.parametrize("size", [0, 3 * MIB, "2M", -1])
def test_a_page_size_that_is_none(size: object, make_config: ConfigMaker) -> None:
    with pytest.raises(ConfigError, match="hugepage_size"):
        _config(make_config, hugepages=True, hugepage_size=size)


def test_too_few_huge_pages_are_told(make_config: ConfigMaker, pools: Callable[..., None]) -> None:
    config = _config(make_config, hugepages=True, hugepage_size=HUGE)
    for has in ({"free": 1}, {"free": 4, "resv": 3}, {"free": 0, "nr_overcommit": 2, "surplus": 1}):
        pools(**has)
        with pytest.raises(OSError, match="needs 2 huge pages of 2048 KiB, and 1 are free") as why:
            make_memfds(config)
        assert why.value.errno == errno.ENOMEM
    pools(free=0, nr_overcommit=2)
    with _made(config) as fds:
        assert os.fstatvfs(fds[3]).f_bsize == HUGE
        assert os.fstatvfs(fds[0]).f_bsize == 4096


def test_a_size_that_the_machine_does_not_have(
    make_config: ConfigMaker, pools: Callable[..., None]
) -> None:
    config = _config(make_config, hugepages=True, hugepage_size=4 * MIB)
    with pytest.raises(OSError, match="needs 1 huge pages of 4096 KiB, and 0 are free"):
        make_memfds(config)


def test_a_mapping_of_half_a_huge_page(make_config: ConfigMaker) -> None:
    config = _config(make_config, hugepages=True, hugepage_size=8 * MIB)
    with pytest.raises(OSError, match="slot 3 has 4194304 bytes, not whole huge pages of 8388608"):
        make_memfds(config)


def test_memory_in_huge_pages(make_config: ConfigMaker) -> None:
    if fresh._free(HUGE) < 2:
        pytest.skip("no two huge pages of 2 MiB are free (/proc/sys/vm/nr_hugepages)")
    config = _config(make_config, hugepages=True, hugepage_size=HUGE)
    with _made(config) as fds:
        memory = GuestMemory.over_files(config.memory_map, fds, writable=True)
        memory.prepare(make_table([(1 << 32, 4096)]))
        assert memory.held_bytes() == HUGE
        assert memory.shortages(8 * MIB) == []
        memory.close()

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.protocol import Limits


def test_the_defaults() -> None:
    limits = Limits()
    assert limits.max_connections == 128
    assert limits.max_strangers == 256
    assert limits.max_config_bytes == 4 << 20
    assert limits.max_first_table_bytes == 1 << 20
    assert limits.max_state_bytes == 1 << 30
    assert limits.max_drained_bytes == 64 << 10
    assert limits.max_page_bytes == 1 << 30


def test_limits_are_frozen() -> None:
    limits = Limits()
    assert not hasattr(limits, "__dict__")
    with pytest.raises(FrozenInstanceError):
        limits.max_connections = 129  # type: ignore[misc]


@given(st.integers(0, 1 << 52))
def test_a_table_may_name_each_page_twice(pages: int) -> None:
    most = Limits().max_table_bytes(pages * 4096)
    assert most % 16 == 0
    assert most // 16 >= 2 * pages
    assert most // 16 <= 2 * pages + 2

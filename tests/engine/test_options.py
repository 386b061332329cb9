from dataclasses import fields, replace
from typing import Any

import pytest

from aiomigrate import Deadlines, Dialect, Limits, ReceiveOptions, SendOptions, UsageError


def test_defaults_are_cloud_hypervisors() -> None:
    options = SendOptions()
    assert (options.connections, options.downtime_ms, options.timeout_s) == (1, 300, 3600)
    assert options.timeout_strategy == "cancel"
    assert (options.rate_limit, options.throttle_cap_percent) == (0, 99)
    assert options.dialect is Dialect.V53


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"connections": 0}, "connections must be 1 to 128, not 0"),
        ({"connections": 129}, "connections must be 1 to 128, not 129"),
        ({"downtime_ms": 0}, "must be at least 1"),
        ({"timeout_s": 0}, "must be at least 1"),
        ({"rate_limit": -1}, "rate_limit must be 0 or at least 1048576 bytes/s, not -1"),
        ({"rate_limit": (1 << 20) - 1}, "at least 1048576 bytes/s, not 1048575"),
        ({"throttle_cap_percent": -1}, "throttle_cap_percent must be 0 to 99, not -1"),
        ({"throttle_cap_percent": 100}, "throttle_cap_percent must be 0 to 99, not 100"),
        ({"chunk_bytes": 0}, "multiple of 4096, not 0"),
        ({"chunk_bytes": 2048}, "multiple of 4096, not 2048"),
        ({"chunk_bytes": 4097}, "multiple of 4096, not 4097"),
    ],
)
def test_what_a_source_cannot_mean(what: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SendOptions(**what)


@pytest.mark.parametrize(
    "what",
    [
        {"connections": 128},
        {"downtime_ms": 1},
        {"chunk_bytes": 4096},
        {"rate_limit": 0},
        {"rate_limit": 1 << 20},
        {"throttle_cap_percent": 0},
        {"throttle_cap_percent": 99},
    ],
)
def test_what_a_source_can_just_mean(what: dict[str, Any]) -> None:
    SendOptions(**what)


def test_the_limit_of_connections_is_an_option() -> None:
    limits = Limits(max_connections=4)
    with pytest.raises(UsageError, match="1 to 4, not 5"):
        SendOptions(connections=5, limits=limits)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"allow_lanes_from": ("10.0.0.0/8", "nowhere")}, "allow_lanes_from: 'nowhere'"),
        ({"allow_lanes_from": ("10.0.0.1/8",)}, "has host bits set"),
        ({"linger_s": 0}, "linger_s must be more than 0"),
        ({"linger_s": float("nan")}, "linger_s must be more than 0"),
    ],
)
def test_what_a_destination_cannot_mean(what: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReceiveOptions(**what)


@pytest.mark.parametrize("name", [f.name for f in fields(Deadlines) if f.name != "pace"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_deadline_is_more_than_nothing(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} must be more than 0 seconds"):
        replace(Deadlines(), **{name: value})

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.cli.text import one_line, parse_size, rate_text, size_text, time_text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1 << 20, "1.0 MiB"),
        (3 << 29, "1.5 GiB"), (200 << 20, "200 MiB"), ((1 << 64) - 1, "16.0 EiB"),
    ],
)  # fmt: skip
def test_sizes(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


@given(st.integers(0, 1 << 80))
def test_sizes_are_short(nbytes: int) -> None:
    if nbytes < 900 << 60:
        assert len(size_text(nbytes)) <= 8


def test_rates_and_times() -> None:
    assert rate_text(1.5 * (1 << 20)) == "1.5 MiB/s"
    assert [time_text(s) for s in (0.0049, 3.24, 250)] == ["5 ms", "3.2 s", "4 min 10 s"]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("2GiB", 2 << 30), ("512M", 512 << 20), ("64 MiB", 64 << 20), ("4096", 4096), ("7B", 7)],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@given(st.text())
def test_a_text_of_a_peer_stays_on_its_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1

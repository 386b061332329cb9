from xml.etree import ElementTree as ET

import pytest

from docs.plots import plot

SVG = "{http://www.w3.org/2000/svg}"


def bars(text: str, kind: str = "s0") -> list[float]:
    root = ET.fromstring(text)  # noqa: S314 - our own
    found = [bar for bar in root.iter(f"{SVG}rect") if bar.get("class") == kind]
    return [float(bar.get("width", "0")) for bar in found[1:]]  # the first is the legend's


def test_bars_are_as_long_as_their_numbers() -> None:
    text = plot("Speed", ["ours", "theirs"], {"one": [1.0, 4.0], "two": [2.0, 3.0]})
    one, two = bars(text)
    longest, other = bars(text, "s1")
    assert two == pytest.approx(2 * one, abs=0.11)
    assert longest == pytest.approx(4 * one, abs=0.21)
    assert other == pytest.approx(3 * one, abs=0.16)
    assert longest < 760


def test_dots_are_a_decade_apart() -> None:
    text = plot("Time", ["ours"], {"one": [1.0], "two": [10.0], "six": [1e6]}, logarithmic=True)
    root = ET.fromstring(text)  # noqa: S314 - our own
    one, two, six = (float(dot.get("cx", "0")) for dot in root.iter(f"{SVG}circle"))
    assert six - one == pytest.approx(6 * (two - one), abs=0.5)
    assert six < 760


def test_names_and_numbers_are_there_and_escaped() -> None:
    text = plot("Speed & <time>", ["ours"], {"a < b": [1234.5]})
    words = [element.text for element in ET.fromstring(text).iter(f"{SVG}text")]  # noqa: S314 - our own
    assert words == ["Speed & <time>", "ours", "a < b", "1,230"]
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("rows", "logarithmic"), [({"a": [1.0]}, False), ({"a": [1.0, 0.0]}, True)]
)
def test_what_cannot_be_drawn(rows: dict[str, list[float]], logarithmic: bool) -> None:
    with pytest.raises(ValueError, match="Speed"):
        plot("Speed", ["ours", "theirs"], rows, logarithmic=logarithmic)

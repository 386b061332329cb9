import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.transport import AddressError, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:127.0.0.1:6000", TcpAddress("127.0.0.1", 6000)),
        ("tcp:host.example:1", TcpAddress("host.example", 1)),
        ("tcp:[::1]:65535", TcpAddress("::1", 65535)),
        ("tcp:[fe80::1%eth0]:6000", TcpAddress("fe80::1%eth0", 6000)),
        ("unix:/run/vm.sock", UnixAddress("/run/vm.sock")),
        ("unix:relative:with:colons", UnixAddress("relative:with:colons")),
        (f"unix:{'x' * 107}", UnixAddress("x" * 107)),
    ],
)
def test_addresses_are_read_and_written(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == address
    assert str(address) == text


def test_port_0_is_for_listening_only() -> None:
    assert parse_address("tcp:[::]:0", listening=True) == TcpAddress("::", 0)
    with pytest.raises(AddressError, match="from 1 to 65535, not '0'"):
        parse_address("tcp:[::]:0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no address"),
        ("tcp", "is no address"),
        ("udp:host:1", "is no address: write tcp:host:port"),
        ("/run/vm.sock", "is no address"),
        ("TCP:host:1", "is no address"),
        ("tcp:", "has no host"),
        ("tcp::6000", "has no host"),
        ("tcp:host", "has no port"),
        ("tcp:host:", "has no port"),
        ("tcp:host:65536", "from 1 to 65535, not '65536'"),
        ("tcp:host:-1", "not '-1'"),
        ("tcp:host:+80", "not '[+]80'"),
        ("tcp:host:port", "not 'port'"),
        ("tcp:host:６000", "the port must be a number"),
        ("tcp:host:" + "9" * 5000, "the port must be a number"),
        ("tcp:ho\0st:1", "NUL"),
        ("tcp:::1:6000", "needs brackets"),
        ("tcp:[::1:6000", "never closed"),
        ("tcp:[::1]", "has no port"),
        ("tcp:[::1]6000", "a colon and a port must follow"),
        ("tcp:[host]:1", "'host' between the brackets is no IPv6 address"),
        ("tcp:[]:1", "is no IPv6 address"),
        ("unix:", "has no path"),
        ("unix:\0abstract", "NUL"),
        (f"unix:{'x' * 108}", "has 108 bytes, a socket's has at most 107"),
        (f"unix:{'é' * 54}", "has 108 bytes"),
    ],
)
def test_each_mistake_has_a_sentence(text: str, says: str) -> None:
    with pytest.raises(AddressError, match=says) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


@given(st.text() | st.builds("tcp:{}".format, st.text()) | st.builds("unix:{}".format, st.text()))
def test_any_text_is_an_address_that_reads_back_or_an_address_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert parse_address(str(address)) == address

import copy
import pickle
from typing import Any

import pytest

from aiomigrate.protocol import LocalProtocolError, ProtocolError, RemoteProtocolError

FIELDS: dict[str, Any] = {
    "connection": "lane 3",
    "state": "Ready",
    "command": "Memory",
    "expected": "a multiple of 16 bytes",
    "got": "17 bytes",
}
ERRORS = [
    LocalProtocolError(**FIELDS),
    RemoteProtocolError(**FIELDS),
    RemoteProtocolError(**FIELDS, reply=b"\x02" + bytes(15)),
    RemoteProtocolError(**{**FIELDS, "command": None}),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_carry_their_fields_and_pickle(error: ProtocolError, again: object) -> None:
    assert callable(again)
    other = again(error)
    assert type(other) is type(error)
    assert vars(other) == vars(error)
    assert str(other) == str(error)
    assert error.connection == "lane 3"
    assert error.state == "Ready"
    assert error.expected == "a multiple of 16 bytes"
    assert error.got == "17 bytes"


def test_a_text_made_of_the_fields() -> None:
    rule = "expected a multiple of 16 bytes, got 17 bytes"
    assert str(ERRORS[0]) == f"lane 3, Ready, Memory: {rule}"
    assert str(ERRORS[3]) == f"lane 3, Ready: {rule}"
    assert ERRORS[0].args == ("lane 3", "Ready", "Memory", *rule[9:].split(", got "))


def test_only_the_peers_breach_has_a_reply() -> None:
    assert ERRORS[1].reply == b""  # type: ignore[attr-defined]
    assert ERRORS[2].reply == b"\x02" + bytes(15)  # type: ignore[attr-defined]
    assert not hasattr(ERRORS[0], "reply")


def test_one_class_catches_both() -> None:
    assert issubclass(LocalProtocolError, ProtocolError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)

"""Requests are read strictly, and what is refused is named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from aiomigrate import SendOptions, TimeoutStrategy
from aiomigrate.api.models import ReceiveMigration, Restore, SendMigration, Snapshot, Tune

REQUESTS: dict[type[BaseModel], dict[str, Any]] = {
    SendMigration: {"destination_url": "tcp:h:1"},
    ReceiveMigration: {"receiver_url": "tcp:h:1"},
    Snapshot: {"destination_url": "file:///x"},
    Restore: {"source_url": "file:///x"},
    Tune: {"downtime_ms": 1},
}
models = pytest.mark.parametrize("model", REQUESTS)


@models
@given(name=st.text(min_size=1), value=st.none() | st.booleans() | st.integers() | st.text())
def test_an_unknown_field_is_named(model: type[BaseModel], name: str, value: object) -> None:
    body = REQUESTS[model]
    if name in model.model_fields:
        return
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps({**body, name: value}))
    assert [one["loc"] for one in caught.value.errors()] == [(name,)]


@models
@given(data=st.binary())
def test_anything_else_is_a_validation_error(model: type[BaseModel], data: bytes) -> None:
    with pytest.raises(ValidationError):
        model.model_validate_json(data)


@models
def test_what_is_required(model: type[BaseModel]) -> None:
    body = REQUESTS[model]
    model.model_validate_json(json.dumps(body))
    with pytest.raises(ValidationError):
        model.model_validate_json("{}")


def test_the_defaults_are_the_engines() -> None:
    asked = SendMigration.model_validate_json('{"destination_url": "tcp:h:1"}')
    options = SendOptions()
    for name in ("downtime_ms", "timeout_s", "connections", "rate_limit", "throttle_cap_percent"):
        assert getattr(asked, name) == getattr(options, name)
    assert asked.strategy is options.timeout_strategy
    assert asked.dialect is options.dialect


def test_its_words_are_translated() -> None:
    body = '{"destination_url": "tcp:h:1", "timeout_strategy": "Ignore", "dialect": "v52"}'
    asked = SendMigration.model_validate_json(body)
    assert asked.strategy is TimeoutStrategy.IGNORE
    assert asked.dialect == "v52"


@given(number=st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_whole_numbers_however_they_are_written(number: float) -> None:
    body = json.dumps({"downtime_ms": number})
    if number == int(number) and 1 <= number < 2**64:
        assert Tune.model_validate_json(body).downtime_ms == number
    else:
        with pytest.raises(ValidationError):
            Tune.model_validate_json(body)

"""What tests of a source's and of a destination's cores share: answers, a token, refusals."""

from collections.abc import Callable

import pytest

from aiomigrate.protocol import LocalProtocolError, RemoteProtocolError, Response, Status

__all__ = ["ERROR", "OK", "TOKEN", "misused", "refused"]

OK = Response(Status.OK).encode()
ERROR = Response(Status.ERROR).encode()
TOKEN = bytes(range(16))


def refused(run: Callable[[], object]) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        run()
    return caught.value


def misused(run: Callable[[], object]) -> LocalProtocolError:
    with pytest.raises(LocalProtocolError) as caught:
        run()
    return caught.value

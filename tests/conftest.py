"""Event loops, the check for blocking calls, the check for leaks, and what coverage counts.

An async test runs on asyncio's own loop. `@pytest.mark.asyncio(loop_factories=["asyncio",
"uvloop"])` runs it on both, `@pytest.mark.asyncio(loop_factories=["virtual"])` on a loop whose
clock jumps (tests/support/clock.py).
"""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from blockbuster import blockbuster_ctx

from aiomigrate.cli.kernels import load
from tests.support.clock import VirtualClockLoop
from tests.support.leaks import Resources

os.environ["HYPOTHESIS_NO_PLUGINS"] = "1"
"""Selenium brings trio, which importing hypothesis would load and set up: nothing here runs on it,
and hypothesis warns where that comes after `kernels_are_loaded`."""
from hypothesis import settings  # noqa: E402  # it reads the variable when it is imported

# How long an example takes says nothing of what is tested.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

_TESTS = Path(__file__).parent
_COUNTED = frozenset({"engine", "protocol"})
"""Rooms whose tests have to cover what must be covered, the protocol and the engine. Lines are
counted there only, and in no process that a test starts: it doubles the time of some.
"""

_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
    "virtual": VirtualClockLoop,
}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """All loops where the test's marker chooses among them, else asyncio's."""
    marker = item.get_closest_marker("asyncio")
    if marker is not None and marker.kwargs.get("loop_factories"):
        return _LOOPS
    return {"asyncio": _LOOPS["asyncio"]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_TESTS).parts[0] not in _COUNTED:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True, scope="session")
def kernels_are_loaded() -> None:
    """As an embedder loads them: at start-up, not on a running loop. Whichever test comes first.

    What is there by then stays. It is left out of garbage collection, which `no_leaks` asks for
    twice a test: through all that pytest and numba hold, each would take a fifth of a second.
    """
    load()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a call in aiomigrate that blocks the running event loop. What tests do themselves is
    their business.

    A unix listener may look at its own socket file and remove it: bind(2) has just put that one
    directory entry in the cache, and close() cannot wait.
    """
    is_async = isinstance(request.node, pytest.Function) and asyncio.iscoroutinefunction(
        request.node.obj
    )
    if not is_async:
        yield
        return
    with blockbuster_ctx("aiomigrate") as detector:
        for name in ("os.stat", "os.unlink"):
            detector.functions[name].can_block_in(
                "aiomigrate/transport/listening.py", {"_identity", "close"}
            )
        # coverage's own, taken where the engine's lines are counted.
        detector.functions["threading.Lock.acquire"].can_block_in(
            "coverage/collector.py", {"lock_data"}
        )
        yield


@pytest.fixture
async def clock() -> VirtualClockLoop:
    """The running virtual loop: `clock.time()`, `clock.watch(peer.busy)`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop), "mark the test with loop_factories=['virtual']"
    return loop


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Fail if the test leaves descriptors, mappings of guest memory, threads or tasks behind."""
    before = Resources.now()
    yield
    assert Resources.left_since(before) == []

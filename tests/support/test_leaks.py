import asyncio
import mmap
import os
import threading

from tests.support.leaks import Resources


async def test_each_kind_of_leak_is_found_and_gone_when_repaired() -> None:
    before = Resources.now()
    released = threading.Event()
    thread = threading.Thread(target=released.wait, name="left over", daemon=True)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    memory = mmap.mmap(fd, 4096)
    task = asyncio.create_task(asyncio.Event().wait(), name="left over")
    left = Resources.left_since(before)
    assert [line.split(":")[0] for line in left] == ["descriptor", "mapping", "task"]

    thread.start()
    now = Resources.now()
    assert {thread.name for thread in now.threads - before.threads} == {"left over"}

    released.set()
    memory.close()
    os.close(fd)
    task.cancel()
    await asyncio.wait([task])
    assert Resources.left_since(before) == []


async def test_the_fixture_passes_a_clean_test(no_leaks: None) -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(host, port)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()

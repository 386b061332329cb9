"""Send a stored VM: python examples/send_stored_vm.py DIRECTORY tcp:HOST:PORT

The destination is Cloud Hypervisor (`ch-remote receive-migration`), `aiomigrate receive`, or
`receive_into_directory.py`. It keeps the VM paused.
"""

import asyncio
import sys

import aiomigrate


async def send(directory: str, address: str) -> None:
    """Send the VM over four connections, and say what came of it."""
    options = aiomigrate.SendOptions(connections=4)
    async with (
        aiomigrate.StoredSource(directory) as source,
        aiomigrate.send(source, address, options) as migration,
    ):
        report = await migration.result()
    print(f"{report.bytes} bytes in {report.duration_s:.1f} s, the {report.owner} has the VM")


def main() -> None:
    """Run it; every way to fail is one sentence that says who has the VM."""
    directory, address = sys.argv[1:]
    try:
        asyncio.run(send(directory, address))
    except (aiomigrate.MigrationError, aiomigrate.StoredVmError, aiomigrate.UsageError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

"""Receive a VM into a directory: python examples/receive_into_directory.py tcp:HOST:PORT DIRECTORY

The source is Cloud Hypervisor (`ch-remote send-migration`), `aiomigrate send`, or
`send_stored_vm.py`. The directory appears whole, or not at all.
"""

import asyncio
import sys

import aiomigrate


async def receive(address: str, directory: str) -> None:
    """Take the first migration that comes."""
    async with (
        aiomigrate.StoredDestination(directory) as destination,
        aiomigrate.receive(destination, address) as migration,
    ):
        print(f"listening on {migration.address}", flush=True)
        report = await migration.result()
    state = "it ran until now" if report.running else "paused"
    print(f"{report.bytes} bytes came over {report.connections} connections; the VM is {state}")
    if not report.confirmed:
        print("its source has not confirmed that it knows: see that it does not run there")


def main() -> None:
    """Run it; every way to fail is one sentence that says who has the VM."""
    address, directory = sys.argv[1:]
    try:
        asyncio.run(receive(address, directory))
    except (aiomigrate.MigrationError, aiomigrate.StoredVmError, aiomigrate.UsageError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

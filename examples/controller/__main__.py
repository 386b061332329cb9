"""A controller of tiny VMs, which fetches them from others: python -m examples.controller PORT

    curl -X PUT localhost:8001/vms/a                                     # a guest, which runs
    curl -X POST localhost:8002/vms/a/fetch -d http://localhost:8001     # and now it runs there

The controller that is to have the VM listens for it and asks the one that has it to send: so all
that a migration needs lasts as long as one request. Whoever has the VM at its end keeps it.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

from aiohttp import ClientError, ClientSession, web

from aiomigrate import MigrationError, UsageError, receive, send
from aiomigrate.tiny_vmm.guest import Work
from aiomigrate.tiny_vmm.kvm import why_unusable
from aiomigrate.tiny_vmm.migrate import VmDestination, VmSource
from aiomigrate.tiny_vmm.vmm import Vm, make_config


class Controller:
    """The machines of one process."""

    def __init__(self) -> None:
        self.vms: dict[str, Vm] = {}
        self.moving: set[str] = set()
        self.console = StringIO()  # what guests have written here

    @contextmanager
    def one(self, request: web.Request, *, there: bool) -> Iterator[str]:
        """Its name; nothing else is done with it meanwhile."""
        name = request.match_info["name"]
        if name in self.moving or (name in self.vms) is not there:
            raise web.HTTPConflict(text=f"{name}: not there, there already, or moving\n")
        self.moving.add(name)
        try:
            yield name
        except (MigrationError, UsageError, ClientError, ValueError) as error:
            raise web.HTTPBadGateway(text=f"{error}\n") from error
        finally:
            self.moving.remove(name)

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response([name for name in self.vms if name not in self.moving])

    async def read(self, request: web.Request) -> web.Response:
        return web.Response(text=self.console.getvalue())

    async def make(self, request: web.Request) -> web.Response:
        with self.one(request, there=False) as name:
            cpu = "thread" if why_unusable() else "kvm"
            vm = self.vms[name] = Vm(make_config(cpu, 8 << 20, 0.001), self.console)
            vm.load(Work(first=1 << 20, end=8 << 20, batch=64))
            vm.resume()
        return web.Response(status=201)

    async def fetch(self, request: web.Request) -> web.Response:
        """Migrate it here from the controller whose URL is the body."""
        with self.one(request, there=False) as name:
            url = f"{await request.text()}/vms/{name}/send"
            destination = VmDestination(self.console)
            try:
                async with ClientSession() as other, receive(destination, "tcp:127.0.0.1:0") as vm:
                    async with other.post(url, data=str(vm.address)) as sent:
                        if not sent.ok:
                            raise web.HTTPBadGateway(text=await sent.text())
                    report = await vm.result()
            finally:
                if destination.vm is not None:
                    self.vms[name] = destination.vm
        return web.json_response({"bytes": report.bytes})

    async def send(self, request: web.Request) -> web.Response:
        """Migrate it to the address that is the body: another controller asks for it."""
        with self.one(request, there=True) as name:
            async with send(VmSource(self.vms[name]), await request.text()) as migration:
                await migration.result()
            await self.vms.pop(name).close()
        return web.Response(status=204)

    async def close(self, _: web.Application) -> None:
        for vm in self.vms.values():
            await vm.close()


if __name__ == "__main__":
    controller, app = Controller(), web.Application()
    app.add_routes([web.get("/vms", controller.show), web.get("/console", controller.read)])
    app.router.add_put("/vms/{name}", controller.make)
    app.router.add_post("/vms/{name}/fetch", controller.fetch)
    app.router.add_post("/vms/{name}/send", controller.send)
    app.on_cleanup.append(controller.close)
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    web.run_app(app, sock=listener, print=None)

"""A REST service that runs migrations: Cloud Hypervisor's own API, and what it lacks.

    vms = {"web-1": vm}                      # objects of yours with the methods of `Vm`
    with open_unix("/run/vms/api.sock") as listener:
        async with serve(Service(vms), listener):
            ...

The real `ch-remote` works against it, and so does `aiomigrate ps|watch|cancel|tune|outcome`.
"""

from aiomigrate.api.http import open_tcp, open_unix, serve
from aiomigrate.api.service import Service
from aiomigrate.api.vms import Refusal, Vm, VmInfo, VmState

__all__ = ["Refusal", "Service", "Vm", "VmInfo", "VmState", "open_tcp", "open_unix", "serve"]

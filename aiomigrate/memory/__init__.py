"""Guest memory: range tables, the memory map, host mappings, and VMs stored in directories.

Knows no socket.

Import from the modules: this package is empty, so that what needs no kernels does not load numba.
"""

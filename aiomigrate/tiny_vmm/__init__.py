"""A virtual machine to try live migration with, in a few hundred lines: read `migrate` first.

`migrate` is all that a VMM needs to be migrated. `vmm` is the machine: memory, devices, and the
thread that runs its CPU; `kvm` is that CPU by KVM, `thread_cpu` the same guest as a thread of this
process, where there is no KVM; `devices` and `ram` are what their names say. `restoring` takes a
guest whose memory comes while it runs: `pager` has its pages brought, `userfaultfd` tells which it
misses. `guest.s` is the guest, `guest` has it assembled. It uses the engine as any other embedder
does.

The guest goes over its memory again and again: in each page it looks for what it left there the
time before, or a device did, and it counts on its serial line. A page that is missing or old is
named there, and is the guest's end.
"""

"""Other kernels, as programs: Debian's User Mode Linux of several suites, with our files.

`guest.suites` fetches a kernel, `guest.machine` boots it and runs a command in it, and
`guest.bridge` lets pytest run tests there. By hand: ``python -m guest -- COMMAND``.
"""

"""What needs another kernel: each test runs in a guest, see :mod:`guest.bridge`."""

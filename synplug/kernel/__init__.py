"""The kernel floor: sockets, netlink and /proc; nothing above it speaks to Linux."""

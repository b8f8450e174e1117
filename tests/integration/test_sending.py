"""What a device has to send, when a clsact is put on it or taken off."""

from __future__ import annotations

import sys

from netlab.topology import ClientServer

#: Forty datagrams into a slow queue, then a clsact on or off: at once, or when they are sent.
_PROGRAM = """
import socket, sys
from synplug.holding.sending import Sending
from synplug.kernel.traffic_control import TrafficControl
control, index = TrafficControl("synplug"), socket.if_nametoindex("lo")
receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
receiver.bind(("127.0.0.1", 0))
receiver.settimeout(0.5)
for waits in (False, False, True, True):
    change = (control.remove_ingress if control.places().has(index) else control.make_ingress)
    for _ in range(40):
        sender.sendto(bytes(500), receiver.getsockname())
    assert control.to_send([index]) == {index}
    assert not waits or Sending(control, [index], 10.0).is_over(index)
    change(index)
    received = 0
    try:
        while receiver.recv(500):
            received += 1
    except TimeoutError:
        print(int(waits), received)
"""


def test_a_clsact_is_put_on_and_taken_off_when_nothing_is_to_be_sent(lab: ClientServer) -> None:
    """The control: at once, and the kernel drops what is queued."""
    slow = "tc qdisc add dev lo root tbf rate 256kbit burst 2000 limit 200000"
    lab.server.run(slow.split())
    said = lab.server.run([sys.executable, "-c", _PROGRAM], timeout_s=60).stdout
    lab.server.run(["tc", "qdisc", "del", "dev", "lo", "root"])
    found = [tuple(map(int, line.split())) for line in said.splitlines()]
    assert [waits for waits, _ in found] == [0, 0, 1, 1]
    assert all((received == 40) == bool(waits) for waits, received in found), found

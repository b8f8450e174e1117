"""Try a hold for real, where it can hurt nobody: in a network namespace of its own.

A child makes the namespace, listens, holds, connects, sees the connection wait, releases, sees
it connect without a retransmission, and sees that nothing is left.
"""

from __future__ import annotations

import os
import select
import socket

from synplug.errors import SynplugError
from synplug.holding.handle import KeptHold
from synplug.holding.locks import RunLocks
from synplug.kernel.namespaces import unshare_network
from synplug.kernel.nfqueue import queue_states
from synplug.kernel.nft import tables
from synplug.model import BackendName, Endpoint, HoldSpec, Hook

_STILL_WAITING_MS = 50
#: A SYN that had to be retransmitted takes a second (RFC 6298, 2.1).
_CONNECTED_MS = 500
_MESSAGE_BYTES = 4096
_PASSED = "passed"


def try_hold(backend: BackendName, hook: Hook = Hook.INPUT) -> str:
    """Run the test; what went wrong, or ``""``.

    :param backend: the one to try. :param hook: where.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _live_as_tester(backend, hook, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        words = pipe.read(_MESSAGE_BYTES)
    os.waitpid(child, 0)
    failure = words.decode(errors="replace") if words else "the test process died"
    return "" if failure == _PASSED else failure


def _live_as_tester(backend: BackendName, hook: Hook, writer: int) -> None:
    """The forked child's whole life; never returns."""
    try:
        unshare_network()
        failures = (_failure(backend, hook, host) for host in ("127.0.0.1", "::1"))
        words = "; ".join(failures).strip("; ")
    except SynplugError as error:
        words = str(error)
    except BaseException as error:  # noqa: BLE001 -- above every other in this process
        words = repr(error)
    finally:
        os.write(writer, (words or _PASSED).encode()[:_MESSAGE_BYTES])
        os._exit(0)


def _failure(backend: BackendName, hook: Hook, host: str) -> str:
    """Hold, release and look, for one address; what went wrong, or ``""``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((host, 0))
        listener.listen(8)
        port = listener.getsockname()[1]
        endpoint = Endpoint(port=port)
        locks = RunLocks([endpoint])
        locks.take(timeout_s=0)
        spec = HoldSpec(
            endpoints=(endpoint,),
            run_id=os.urandom(4).hex(),
            backend=backend,
            hook=hook,
            max_hold_s=5.0,
            max_held_packets=16,
        )
        hold = KeptHold(spec, locks)
        try:
            hold.arm()
            hold.hold()
            client.setblocking(False)
            client.connect_ex((host, port))
            if _is_connected(client, _STILL_WAITING_MS):
                return f"{host}: the connection did not wait"
            hold.release()
            if not _is_connected(client, _CONNECTED_MS):
                return f"{host}: the connection did not come through after the release"
            hold.finish()
        finally:
            hold.close()
            locks.drop()
    left = _left(backend)
    return f"{host}: still there afterwards: {', '.join(left)}" if left else ""


def _left(backend: BackendName) -> list[str]:
    """What is still in the kernel of a namespace in which nobody else does anything."""
    if backend is BackendName.PLUG:
        return [name for _, name in socket.if_nameindex() if name.startswith("synplug")]
    left = [name for name in tables() if name.startswith("synplug")]
    return left + [f"queue {number}" for number in queue_states()]


def _is_connected(client: socket.socket, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(client.fileno(), select.POLLOUT)
    return bool(poll.poll(timeout_ms))

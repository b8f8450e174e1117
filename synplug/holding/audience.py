"""Everybody a keeper talks with: the run that started it, and who asks for a named hold."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from synplug.holding.channel import Channel
from synplug.holding.names import Door


class Audience:
    """Speaks to all of them, hears each.

    :param run: the channel to the run. :param poll: where descriptors to listen to are kept.
    """

    def __init__(self, run: Channel, poll: select.poll) -> None:
        self._run: Channel | None = run
        self._poll = poll
        self._door: Door | None = None
        self._channels = {run.fileno(): run}
        #: What a newcomer is told.
        self.greeting: Callable[[], dict[str, Any]] = dict
        self.is_detached = False
        self._old: list[Any] = []
        poll.register(run.fileno(), select.POLLIN)

    def open_door(self, name: str) -> None:
        """Let others ask for the hold by its name.

        :raises KernelError: the socket cannot be made.
        """
        self._door = Door(name)

    def admit(self) -> None:
        """Begin to let them in; who has come before waits at the door."""
        if self._door is not None:
            self._poll.register(self._door.fileno(), select.POLLIN)

    def close_door(self) -> None:
        """Be asked for by name no more; who is in stays."""
        if self._door is not None:
            with suppress(KeyError):  # nobody has been let in yet
                self._poll.unregister(self._door.fileno())
            self._door.close()
            self._door = None

    def say(self, event: str, **fields: Any) -> None:
        """Tell everybody; who does not listen misses it."""
        for channel in self._channels.values():
            channel.send(event, **fields)

    def detach(self, old: list[Any]) -> None:
        """The run goes, and leaves the hold to us.

        :param old: the listeners that stood before it, for newcomers.
        """
        self._old = old
        self.say("detached")
        self.is_detached = True

    def hear(self, descriptor: int) -> dict[str, Any] | None:
        """What somebody says; None if nothing, or it is not one of ours.

        That the run has gone without leaving us the hold is the event ``orphaned``.
        """
        if self._door is not None and descriptor == self._door.fileno():
            self._admit(self._door)
            return None
        channel = self._channels.get(descriptor)
        if channel is None:
            return None
        message = channel.receive()
        if message is not None:
            return message
        self._poll.unregister(descriptor)
        del self._channels[descriptor]
        channel.close()
        was_the_run, self._run = channel is self._run, None if channel is self._run else self._run
        return {"event": "orphaned"} if was_the_run and not self.is_detached else None

    def _admit(self, door: Door) -> None:
        guest = door.admit()
        if guest is not None:
            self._channels[guest.fileno()] = guest
            self._poll.register(guest.fileno(), select.POLLIN)
            guest.send("holding", old=self._old, **self.greeting())

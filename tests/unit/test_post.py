"""POST to an admin interface: what is a URL, and what an answer means."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from synplug.errors import StopError, UsageError
from synplug.handover.post import Post, check_post_url
from synplug.handover.tools import REFUSED


@pytest.mark.parametrize(
    "url",
    [
        "unix:/run/admin.sock:/drain_listeners",
        "unix:/run/admin-{generation}.sock:/",
        "http://127.0.0.1:9901/drain_listeners?graceful",
        "http://127.0.0.1:990{generation}/",
        "http://[::1]:1/",
        "http://[::1]:65535/",
    ],
)
def test_a_url(url: str) -> None:
    assert check_post_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:0/", "http://127.0.0.1:65536/", "http://127.0.0.1:99999/", "http://x:1/"],
)
def test_no_url(url: str) -> None:
    with pytest.raises(UsageError):
        check_post_url(url)


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = tmp_path / "admin"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        yield listener, f"unix:{path}:/drain_listeners"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", REFUSED),
        (b"", 2),
        (b"HTTP/1.1 4", 2),
    ],
)
def test_what_an_answer_means(admin: tuple[socket.socket, str], answer: bytes, status: int) -> None:
    listener, url = admin
    post = Post(url, mark=0)
    assert post.poll() is None
    connection, _ = listener.accept()
    with connection:
        assert connection.recv(4096).startswith(b"POST /drain_listeners HTTP/1.1\r\n")
        connection.sendall(answer)
    assert post.poll() == status


def test_a_full_socket_is_not_waited_for(admin: tuple[socket.socket, str]) -> None:
    _, url = admin
    with ExitStack() as stack:
        for _ in range(2):  # a backlog of 0 has room for one
            end = stack.enter_context(socket.socket(socket.AF_UNIX))
            end.setblocking(False)
            with suppress(BlockingIOError):
                end.connect(url.split(":")[1])
        with pytest.raises(StopError):
            Post(url, mark=0)


def test_a_port_that_only_its_generation_makes_impossible() -> None:
    with pytest.raises(StopError):
        Post("http://127.0.0.1:99012/", mark=0)

/* loadgen: system calls on one socket, and what their errors mean. */
#pragma once

#include "loadgen.h"

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static enum outcome outcome_of(int error, bool connecting)
{
	if (error == ECONNREFUSED && connecting)
		return REFUSED;
	if (error == ECONNRESET || error == EPIPE)
		return RESET;
	if (error == ETIMEDOUT)
		return TIMED_OUT;
	return ERROR;
}

/*
 * How often the SYN was sent, and, once connected, which one the server answered: its answer echoes
 * that one's timestamp (RFC 7323), and tcpi_rtt is the time since. When the answer came says
 * tcpi_last_data_recv (tcp_finish_connect() sets it), however late we look. Times are to a jiffy.
 */
static void note_handshake(struct record *r, int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof info;
	uint64_t since_ns;

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
		return;
	r->retransmits = info.tcpi_total_retrans > 255 ? 255 : (uint8_t)info.tcpi_total_retrans;
	since_ns = info.tcpi_last_data_recv * MS + info.tcpi_rtt * 1000ULL;
	if (r->connect_ns > since_ns)
		r->answered_ns = r->connect_ns - since_ns;
}

/* Starts to connect; returns the descriptor, or -1 with errno. */
static int connect_socket(const struct address *target, const struct address *source,
			  int epoll_fd)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
	int one = 1;
	int fd = socket(target->any.sa_family,
			SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if (source) {
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
		if (bind(fd, &source->any, source->length))
			goto failed;
	}
	if (connect(fd, &target->any, target->length) && errno != EINPROGRESS)
		goto failed;
	event.data.fd = fd;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
		goto failed;
	return fd;
failed:
	one = errno;
	close(fd);
	errno = one;
	return -1;
}

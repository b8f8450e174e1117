/*
 * listenwatch: an independent oracle of when a port had no listener.
 *
 * Every 0.5 ms it dumps the TCP listeners of its network namespace, IPv4 and IPv6
 * (sock_diag(7); kernel: net/ipv4/inet_diag.c), and notes for each watched port and family
 * the intervals in which none existed. A dual-stack IPv6 listener (no IPV6_V6ONLY) on the
 * unspecified address counts for IPv4 too.
 *
 * It goes before all others where it may (CAP_SYS_NICE): who waits for a processor sees a
 * listener late. It never takes more than a quarter of one, however long its dumps are.
 *
 * usage: listenwatch [--no-ipv4] [--no-ipv6] PORT...
 *
 * Prints "ready" after the first look. On SIGTERM, one JSON object a line: each gap, then
 * a summary with the number of looks and the longest time between two of them, below which
 * a gap can go unseen. Times are CLOCK_MONOTONIC ns.
 */
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ULL
#define INTERVAL_NS 500000ULL
#define REST 3 /* times what a look took of the processor */
#define MAX_PORTS 64

struct watch {
	uint16_t port;
	bool wanted[2], seen[2]; /* 0: IPv4, 1: IPv6 */
	uint64_t absent_since_ns[2];
};

struct gap {
	uint16_t port;
	int family; /* 4 or 6 */
	uint64_t start_ns, end_ns;
};

static struct watch watches[MAX_PORTS];
static size_t watch_count;
static struct gap *gaps;
static size_t gap_count, gap_capacity;
static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
	(void)number;
	stopping = 1;
}

static uint64_t read_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void)
{
	return read_ns(CLOCK_MONOTONIC);
}

static void die(const char *what)
{
	fprintf(stderr, "listenwatch: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void request_dump(int netlink, int family)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 body;
	} request = {
		.header = {.nlmsg_len = sizeof request,
			   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
			   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		.body = {.sdiag_family = (uint8_t)family,
			 .sdiag_protocol = IPPROTO_TCP,
			 .idiag_states = 1 << TCP_LISTEN},
	};
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};

	if (sendto(netlink, &request, sizeof request, 0, (struct sockaddr *)&kernel,
		   sizeof kernel) < 0)
		die("sendto(NETLINK_SOCK_DIAG)");
}

/* The kernel adds INET_DIAG_SKV6ONLY to every IPv6 listener it reports. */
static bool serves_ipv4_too(const struct inet_diag_msg *socket, unsigned int length)
{
	static const uint32_t unspecified[4];
	const struct rtattr *attribute = (const struct rtattr *)(socket + 1);

	if (memcmp(socket->id.idiag_src, unspecified, sizeof unspecified))
		return false;
	length -= (unsigned int)NLMSG_ALIGN(sizeof *socket);
	for (; RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length))
		if (attribute->rta_type == INET_DIAG_SKV6ONLY)
			return !*(const uint8_t *)RTA_DATA(attribute);
	return false;
}

static void note(const struct nlmsghdr *header)
{
	const struct inet_diag_msg *socket = NLMSG_DATA(header);

	for (size_t i = 0; i < watch_count; i++) {
		struct watch *w = &watches[i];
		if (w->port != ntohs(socket->id.idiag_sport))
			continue;
		if (socket->idiag_family == AF_INET)
			w->seen[0] = true;
		else
			w->seen[1] = true;
		if (socket->idiag_family == AF_INET6 &&
		    serves_ipv4_too(socket, header->nlmsg_len - NLMSG_HDRLEN))
			w->seen[0] = true;
	}
}

static void read_dump(int netlink)
{
	static char buffer[65536] __attribute__((aligned(8)));

	for (;;) {
		ssize_t received = recv(netlink, buffer, sizeof buffer, 0);
		struct nlmsghdr *header = (struct nlmsghdr *)buffer;
		if (received < 0 && errno == EINTR)
			continue;
		if (received <= 0)
			die("recv(NETLINK_SOCK_DIAG)");
		for (size_t left = (size_t)received; NLMSG_OK(header, left);
		     header = NLMSG_NEXT(header, left)) {
			if (header->nlmsg_type == NLMSG_DONE)
				return;
			if (header->nlmsg_type == NLMSG_ERROR) {
				errno = -((struct nlmsgerr *)NLMSG_DATA(header))->error;
				die("sock_diag");
			}
			note(header);
		}
	}
}

static void close_gap(struct watch *w, int index, uint64_t now)
{
	if (gap_count == gap_capacity) {
		gap_capacity = gap_capacity ? gap_capacity * 2 : 1024;
		gaps = realloc(gaps, gap_capacity * sizeof *gaps);
		if (!gaps)
			die("realloc");
	}
	gaps[gap_count++] = (struct gap){.port = w->port,
					 .family = index ? 6 : 4,
					 .start_ns = w->absent_since_ns[index],
					 .end_ns = now};
	w->absent_since_ns[index] = 0;
}

static void look(int netlink)
{
	uint64_t now;

	for (size_t i = 0; i < watch_count; i++)
		watches[i].seen[0] = watches[i].seen[1] = false;
	request_dump(netlink, AF_INET);
	read_dump(netlink);
	request_dump(netlink, AF_INET6);
	read_dump(netlink);
	now = now_ns();
	for (size_t i = 0; i < watch_count; i++) {
		struct watch *w = &watches[i];
		for (int index = 0; index < 2; index++) {
			if (!w->wanted[index])
				continue;
			if (!w->seen[index] && !w->absent_since_ns[index])
				w->absent_since_ns[index] = now;
			else if (w->seen[index] && w->absent_since_ns[index])
				close_gap(w, index, now);
		}
	}
}

/*
 * A nice value alone may leave it waiting for the end of another's slice; a real-time policy
 * does not (sched(7)). Who may have neither stays as it is.
 */
static void go_first(void)
{
	struct sched_param lowest = {.sched_priority = sched_get_priority_min(SCHED_FIFO)};

	if (sched_setscheduler(0, SCHED_FIFO, &lowest))
		setpriority(PRIO_PROCESS, 0, -20);
}

static void watch_until_signal(int netlink)
{
	uint64_t due = now_ns(), previous = due, longest_ns = 0, looks = 0, now;
	uint64_t used = read_ns(CLOCK_THREAD_CPUTIME_ID), rested, before;

	for (; !stopping; looks++) {
		struct timespec when;
		look(netlink);
		if (!looks) {
			puts("ready");
			fflush(stdout);
		}
		now = now_ns();
		longest_ns = now - previous > longest_ns ? now - previous : longest_ns;
		previous = now;
		before = used;
		used = read_ns(CLOCK_THREAD_CPUTIME_ID);
		rested = now + REST * (used - before);
		due = due + INTERVAL_NS > rested ? due + INTERVAL_NS : rested;
		when = (struct timespec){.tv_sec = (time_t)(due / SECOND),
					 .tv_nsec = (long)(due % SECOND)};
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
	}
	now = now_ns();
	for (size_t i = 0; i < watch_count; i++)
		for (int index = 0; index < 2; index++)
			if (watches[i].absent_since_ns[index])
				close_gap(&watches[i], index, now);
	for (size_t i = 0; i < gap_count; i++)
		printf("{\"port\": %u, \"family\": %d, \"start_ns\": %llu, \"end_ns\": %llu}\n",
		       gaps[i].port, gaps[i].family, (unsigned long long)gaps[i].start_ns,
		       (unsigned long long)gaps[i].end_ns);
	printf("{\"looks\": %llu, \"longest_interval_ns\": %llu}\n", (unsigned long long)looks,
	       (unsigned long long)longest_ns);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal};
	bool wanted[2] = {true, true};
	int netlink;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--no-ipv4"))
			wanted[0] = false;
		else if (!strcmp(argv[i], "--no-ipv6"))
			wanted[1] = false;
		else if (watch_count < MAX_PORTS)
			watches[watch_count++].port = (uint16_t)strtoul(argv[i], NULL, 10);
	}
	for (size_t i = 0; i < watch_count; i++)
		memcpy(watches[i].wanted, wanted, sizeof wanted);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	prctl(PR_SET_TIMERSLACK, 1UL);
	netlink = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (netlink < 0)
		die("socket(NETLINK_SOCK_DIAG)");
	go_first();
	watch_until_signal(netlink);
	return 0;
}

/* What loadgen is told (its arguments), what it records, and when an answer is complete. */
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000ULL
#define SECOND 1000000000ULL
#define MAGIC "NETLAB\x01\n"
#define MAX_OPEN 262144
#define MAX_TARGETS 64
#define MAX_SOURCES 1024
#define MAX_HEADERS 2048

enum outcome { OK, REFUSED, RESET, EARLY_CLOSED, TIMED_OUT, ERROR };
enum protocol { HTTP, REDIS };
enum state { CONNECTING, WAITING, CLOSING };

struct record {
	uint64_t scheduled_ns; /* CLOCK_MONOTONIC */
	uint64_t opened_ns;    /* CLOCK_MONOTONIC, just before connect(2) */
	uint64_t connect_ns;   /* from opened_ns; 0: never connected */
	uint64_t total_ns;     /* from opened_ns to the outcome */
	uint32_t error;	       /* errno, 0 if none */
	uint16_t target;
	uint8_t outcome;
	uint8_t retransmits; /* tcpi_total_retrans when connected: SYNs sent again */
};

struct address {
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	};
	socklen_t length;
};

struct target {
	struct address address;
};

struct answer {
	size_t header_bytes; /* collected so far, until complete */
	long long body_left;
	bool headers_complete, until_eof, broken;
	char headers[MAX_HEADERS];
};

struct connection {
	struct connection *next, *previous; /* open ones, oldest first */
	size_t record;
	int fd;
	enum state state;
	struct answer answer;
};

struct config {
	double rate;
	uint64_t timeout_ns, duration_ns;
	enum protocol protocol;
	const char *output, *request;
	size_t request_length;
	struct target targets[MAX_TARGETS];
	size_t target_count;
	struct address v4_sources[MAX_SOURCES], v6_sources[MAX_SOURCES];
	size_t v4_source_count, v6_source_count;
};

static const struct option OPTIONS[] = {
	{"rate", required_argument, NULL, 'r'},	       {"protocol", required_argument, NULL, 'p'},
	{"timeout-ms", required_argument, NULL, 't'},  {"output", required_argument, NULL, 'o'},
	{"duration-ms", required_argument, NULL, 'd'}, {"source", required_argument, NULL, 's'},
	{"target", required_argument, NULL, 'T'},      {NULL, 0, NULL, 0},
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("loadgen: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(1);
}

static struct address parse_address(const char *text, const char *port)
{
	struct address a = {.length = 0};
	uint16_t number = htons((uint16_t)strtoul(port, NULL, 10));

	if (inet_pton(AF_INET, text, &a.v4.sin_addr) == 1) {
		a.v4.sin_family = AF_INET;
		a.v4.sin_port = number;
		a.length = sizeof a.v4;
	} else if (inet_pton(AF_INET6, text, &a.v6.sin6_addr) == 1) {
		a.v6.sin6_family = AF_INET6;
		a.v6.sin6_port = number;
		a.length = sizeof a.v6;
	} else {
		die("not an IP address: %s", text);
	}
	return a;
}

static void add_source(struct config *c, const char *text)
{
	struct address a = parse_address(text, "0");

	if (c->v4_source_count == MAX_SOURCES || c->v6_source_count == MAX_SOURCES)
		die("too many sources");
	if (a.any.sa_family == AF_INET)
		c->v4_sources[c->v4_source_count++] = a;
	else
		c->v6_sources[c->v6_source_count++] = a;
}

/* ADDR,PORT: an IPv6 address has colons of its own. */
static void add_target(struct config *c, char *text)
{
	char *comma = strchr(text, ',');

	if (!comma || c->target_count == MAX_TARGETS)
		die(comma ? "too many targets" : "a target is ADDR,PORT: %s", text);
	*comma = '\0';
	c->targets[c->target_count++].address = parse_address(text, comma + 1);
}

static void configure(struct config *c, int argc, char **argv)
{
	int option;

	while ((option = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1) {
		switch (option) {
		case 'r': c->rate = strtod(optarg, NULL); break;
		case 'p': c->protocol = strcmp(optarg, "redis") ? HTTP : REDIS; break;
		case 't': c->timeout_ns = strtoull(optarg, NULL, 10) * MS; break;
		case 'd': c->duration_ns = strtoull(optarg, NULL, 10) * MS; break;
		case 'o': c->output = optarg; break;
		case 's': add_source(c, optarg); break;
		case 'T': add_target(c, optarg); break;
		default: die("bad arguments");
		}
	}
	if (!c->target_count || !c->output || !(c->rate > 0))
		die("--target, --output and a positive --rate are needed");
	c->request = c->protocol == REDIS ? "PING\r\n"
					  : "GET / HTTP/1.1\r\nHost: netlab\r\n"
					    "Connection: close\r\n\r\n";
	c->request_length = strlen(c->request);
}

static const struct address *source_for(const struct config *c, const struct target *t,
					size_t sequence)
{
	bool v4 = t->address.any.sa_family == AF_INET;
	size_t count = v4 ? c->v4_source_count : c->v6_source_count;
	/* advance only after each target had its turn, or targets and sources would pair up */
	size_t turn = sequence / c->target_count;

	if (!count)
		return NULL;
	return v4 ? &c->v4_sources[turn % count] : &c->v6_sources[turn % count];
}

/* RFC 9112, 6.3: the body ends with Content-Length, or with the connection. */
static void headers_done(struct answer *a, size_t body_bytes)
{
	const char *length = strcasestr(a->headers, "\r\nContent-Length:");

	a->headers_complete = true;
	a->until_eof = !length;
	a->body_left = length ? strtoll(length + 17, NULL, 10) - (long long)body_bytes : 0;
	if (strncmp(a->headers, "HTTP/1.", 7) || strncmp(a->headers + 8, " 200", 4))
		a->broken = true;
}

static void collect_headers(struct answer *a, const char *bytes, size_t count)
{
	size_t room = sizeof a->headers - 1 - a->header_bytes;
	size_t taken = count < room ? count : room;
	const char *end;

	memcpy(a->headers + a->header_bytes, bytes, taken);
	a->header_bytes += taken;
	a->headers[a->header_bytes] = '\0';
	end = strstr(a->headers, "\r\n\r\n");
	if (end)
		headers_done(a, (size_t)(a->headers + a->header_bytes - end - 4) + count - taken);
	else if (taken < count)
		a->broken = true;
}

static bool pong_feed(struct answer *a, const char *bytes, size_t count)
{
	static const char PONG[] = "+PONG\r\n";
	size_t expected = sizeof PONG - 1;

	a->broken = count > expected - a->header_bytes ||
		    memcmp(PONG + a->header_bytes, bytes, count) != 0;
	a->header_bytes += a->broken ? 0 : count;
	return a->header_bytes == expected;
}

/* Returns true when the answer is complete. */
static bool answer_feed(struct answer *a, enum protocol protocol, const char *bytes,
			size_t count)
{
	if (protocol == REDIS)
		return pong_feed(a, bytes, count);
	if (a->headers_complete)
		a->body_left -= a->until_eof ? 0 : (long long)count;
	else
		collect_headers(a, bytes, count);
	a->broken |= a->body_left < 0;
	return !a->broken && a->headers_complete && !a->until_eof && a->body_left == 0;
}

/* Is the answer complete when the connection ends here? */
static bool answer_ends(const struct answer *a, enum protocol protocol)
{
	return protocol == HTTP && a->headers_complete && !a->broken && a->until_eof;
}

/* What loadgen is told, what it keeps of a connection, and what it records. */
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
#define MAGIC "NETLAB\x02\n"
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
	uint64_t answered_ns; /* from opened_ns to the sending of the SYN that was answered */
};

struct address {
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	};
	socklen_t length;
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
	struct address targets[MAX_TARGETS];
	size_t target_count;
	struct address v4_sources[MAX_SOURCES], v6_sources[MAX_SOURCES];
	size_t v4_source_count, v6_source_count;
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

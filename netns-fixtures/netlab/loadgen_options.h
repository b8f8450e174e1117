/* loadgen: its arguments, and the source address for a connection. */
#pragma once

#include "loadgen.h"

static const struct option OPTIONS[] = {
	{"rate", required_argument, NULL, 'r'},	       {"protocol", required_argument, NULL, 'p'},
	{"timeout-ms", required_argument, NULL, 't'},  {"output", required_argument, NULL, 'o'},
	{"duration-ms", required_argument, NULL, 'd'}, {"source", required_argument, NULL, 's'},
	{"target", required_argument, NULL, 'T'},      {NULL, 0, NULL, 0},
};

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
	c->targets[c->target_count++] = parse_address(text, comma + 1);
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

static const struct address *source_for(const struct config *c, const struct address *target,
					size_t sequence)
{
	bool v4 = target->any.sa_family == AF_INET;
	size_t count = v4 ? c->v4_source_count : c->v6_source_count;
	/* advance only after each target had its turn, or targets and sources would pair up */
	size_t turn = sequence / c->target_count;

	if (!count)
		return NULL;
	return v4 ? &c->v4_sources[turn % count] : &c->v6_sources[turn % count];
}

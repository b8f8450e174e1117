/* loadgen: is the answer complete, incomplete, or wrong? */
#pragma once

#include "loadgen.h"

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

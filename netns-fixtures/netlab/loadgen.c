/*
 * loadgen: an open-loop load client. One new TCP connection per request, at a fixed rate.
 *
 * Connection i is due at start + i / rate on CLOCK_MONOTONIC, whatever became of the ones
 * before it; a late client catches up. Nothing is written to disk before the end.
 *
 * Who closes first: for http the server ("Connection: close"; we close after its EOF), so
 * TIME_WAIT stays there. For redis we close, after the complete answer, with SO_LINGER 0:
 * an RST on an idle connection, which leaves no TIME_WAIT on either side.
 *
 * usage: loadgen --rate N --protocol http|redis --timeout-ms N --output FILE
 *                [--duration-ms N] [--source ADDR]... --target ADDR PORT ...
 *
 * Prints "ready" when the first request was answered. Ends on SIGTERM or after the
 * duration: opens no more, waits for the open ones (up to their timeout), writes FILE:
 * an 8-byte magic and records in host byte order, see struct record.
 */
#include "loadgen_answer.h"
#include "loadgen_options.h"
#include "loadgen_socket.h"

static struct config config = {.timeout_ns = 5000 * MS, .rate = 100};
static struct record *records;
static size_t record_count, record_capacity;
static struct connection *connections; /* one slot per file descriptor */
static struct connection oldest = {.next = &oldest, .previous = &oldest, .fd = -1};
static size_t open_limit, open_count;
static bool announced, stopping;
static int epoll_fd, signal_fd;

static struct record *new_record(uint64_t scheduled_ns, uint16_t target)
{
	if (record_count == record_capacity) {
		record_capacity = record_capacity ? record_capacity * 2 : 1 << 17;
		records = realloc(records, record_capacity * sizeof *records);
		if (!records)
			die("out of memory for records");
	}
	records[record_count] = (struct record){.scheduled_ns = scheduled_ns, .target = target};
	return &records[record_count++];
}

static void close_connection(struct connection *c)
{
	c->previous->next = c->next;
	c->next->previous = c->previous;
	close(c->fd); /* leaves the epoll set with it */
	c->fd = -1;
	open_count--;
}

/* Fixes the outcome; only the first call for a connection counts. */
static void settle(struct connection *c, enum outcome outcome, int error)
{
	struct record *r = &records[c->record];

	if (c->state == CLOSING)
		return;
	r->outcome = (uint8_t)outcome;
	r->error = (uint32_t)error;
	r->total_ns = now_ns() - r->opened_ns;
	c->state = CLOSING;
	if (outcome == OK && !announced) {
		announced = true;
		puts("ready");
		fflush(stdout);
	}
}

static void fail(struct connection *c, int error)
{
	settle(c, outcome_of(error, c->state == CONNECTING), error);
	close_connection(c);
}

/* Returns false when the connection is closed. */
static bool on_connected(struct connection *c)
{
	struct record *r = &records[c->record];
	int error = 0;
	socklen_t size = sizeof error;
	ssize_t sent;

	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (error) {
		note_handshake(r, c->fd);
		fail(c, error);
		return false;
	}
	r->connect_ns = now_ns() - r->opened_ns;
	note_handshake(r, c->fd);
	c->state = WAITING;
	sent = send(c->fd, config.request, config.request_length, MSG_NOSIGNAL);
	if (sent == (ssize_t)config.request_length)
		return true;
	fail(c, sent < 0 ? errno : EMSGSIZE);
	return false;
}

/* Looks at what has been received; true when the answer is complete. */
static bool on_bytes(struct connection *c, const char *bytes, size_t count)
{
	if (c->state == CLOSING)
		return false;
	if (c->answer.broken || !answer_feed(&c->answer, config.protocol, bytes, count))
		return false;
	settle(c, OK, 0);
	if (config.protocol == REDIS) {
		struct linger reset = {.l_onoff = 1, .l_linger = 0};
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
		return true;
	}
	return false;
}

static void on_readable(struct connection *c)
{
	static char buffer[65536];

	for (;;) {
		ssize_t count = recv(c->fd, buffer, sizeof buffer, 0);
		if (count > 0) {
			bool finished = on_bytes(c, buffer, (size_t)count);
			if (c->answer.broken)
				settle(c, ERROR, EPROTO);
			if (finished || c->answer.broken) {
				close_connection(c);
				return;
			}
		} else if (count == 0) {
			bool whole = answer_ends(&c->answer, config.protocol);
			settle(c, whole ? OK : EARLY_CLOSED, 0);
			close_connection(c);
			return;
		} else if (errno == EAGAIN) {
			return;
		} else if (errno != EINTR) {
			fail(c, errno);
			return;
		}
	}
}

static void open_connection(uint64_t scheduled_ns)
{
	size_t sequence = record_count;
	uint16_t index = (uint16_t)(sequence % config.target_count);
	const struct address *target = &config.targets[index];
	const struct address *source = source_for(&config, target, sequence);
	struct record *r = new_record(scheduled_ns, index);
	struct connection *c;
	int fd;

	r->opened_ns = now_ns();
	errno = EMFILE;
	fd = open_count < open_limit ? connect_socket(target, source, epoll_fd) : -1;
	if (fd < 0) {
		r->error = (uint32_t)errno;
		r->outcome = (uint8_t)outcome_of(errno, true);
		r->total_ns = now_ns() - r->opened_ns;
		return;
	}
	c = &connections[fd];
	*c = (struct connection){.fd = fd, .record = record_count - 1, .state = CONNECTING};
	c->next = &oldest;
	c->previous = oldest.previous;
	oldest.previous->next = c;
	oldest.previous = c;
	open_count++;
}

/* The timeout is the same for all, so the list of open connections is in deadline order. */
static uint64_t expire(uint64_t now)
{
	while (oldest.next != &oldest) {
		struct connection *c = oldest.next;
		struct record *r = &records[c->record];
		if (r->opened_ns + config.timeout_ns > now)
			return r->opened_ns + config.timeout_ns;
		if (c->state == CONNECTING)
			note_handshake(r, c->fd);
		settle(c, TIMED_OUT, 0);
		close_connection(c);
	}
	return UINT64_MAX;
}

static void handle_events(void)
{
	struct epoll_event events[256];
	int count = epoll_wait(epoll_fd, events, 256, 0);

	for (int i = 0; i < count; i++) {
		struct connection *c = &connections[events[i].data.fd];
		if (events[i].data.fd == signal_fd) {
			stopping = true;
			epoll_ctl(epoll_fd, EPOLL_CTL_DEL, signal_fd, NULL);
			continue;
		}
		if (c->state == CONNECTING && !on_connected(c))
			continue;
		if (events[i].events & ~(uint32_t)EPOLLOUT)
			on_readable(c);
	}
}

static void sleep_until(uint64_t when_ns)
{
	struct pollfd wait = {.fd = epoll_fd, .events = POLLIN};
	uint64_t now = now_ns();
	uint64_t left = when_ns > now ? when_ns - now : 0;
	struct timespec timeout = {.tv_sec = (time_t)(left / SECOND),
				   .tv_nsec = (long)(left % SECOND)};

	ppoll(&wait, 1, when_ns == UINT64_MAX ? NULL : &timeout, NULL);
}

/* Waiting only for EOF after a complete answer is no reason to stay. */
static bool all_settled(void)
{
	for (struct connection *c = oldest.next; c != &oldest; c = c->next)
		if (c->state != CLOSING)
			return false;
	return true;
}

static void run(void)
{
	uint64_t start = now_ns(), now = start, sequence = 0, due = start;
	uint64_t end = config.duration_ns ? start + config.duration_ns : UINT64_MAX;

	for (;;) {
		uint64_t deadline;
		for (int burst = 0; !stopping && due <= now && burst < 64; burst++) {
			open_connection(due);
			due = start + (uint64_t)((double)++sequence * 1e9 / config.rate);
			stopping = due >= end;
		}
		handle_events();
		now = now_ns();
		deadline = expire(now);
		if (stopping && all_settled())
			return;
		if (stopping || due > now)
			sleep_until(stopping || deadline < due ? deadline : due);
		now = now_ns();
	}
}

static void prepare(void)
{
	struct rlimit limit;
	struct epoll_event event = {.events = EPOLLIN};
	sigset_t signals;

	prctl(PR_SET_TIMERSLACK, 1UL);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max < MAX_OPEN ? limit.rlim_max : MAX_OPEN;
	setrlimit(RLIMIT_NOFILE, &limit);
	open_limit = limit.rlim_cur - 16;
	connections = calloc(limit.rlim_cur, sizeof *connections);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	event.data.fd = signal_fd;
	if (!connections || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, signal_fd, &event))
		die("cannot prepare: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	FILE *output;

	configure(&config, argc, argv);
	output = fopen(config.output, "wb");
	if (!output)
		die("%s: %s", config.output, strerror(errno));
	prepare();
	run();
	if (fwrite(MAGIC, 1, 8, output) != 8 ||
	    fwrite(records, sizeof *records, record_count, output) != record_count ||
	    fclose(output))
		die("%s: %s", config.output, strerror(errno));
	return 0;
}

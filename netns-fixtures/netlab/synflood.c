/* SYNs with chosen sources: synflood ADDRESS PORT FIRST-SOURCE SOURCES COUNT RATE
 *
 * Sends COUNT TCP SYNs to ADDRESS and PORT, RATE a second, from SOURCES addresses in a row that
 * begin at FIRST-SOURCE (the last 32 bits count up), each from another port. IPv4 and IPv6. For
 * namespaces of a test's own: it forges its sources, and needs CAP_NET_RAW. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static uint32_t sum_of(const void *data, size_t bytes, uint32_t sum)
{
	const unsigned char *byte = data;
	for (size_t at = 0; at + 1 < bytes; at += 2)
		sum += (uint32_t)(byte[at] << 8 | byte[at + 1]);
	return sum;
}

static uint16_t folded(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

static void wait_until(const struct timespec *start, double seconds)
{
	struct timespec at = *start;
	at.tv_sec += (time_t)seconds;
	at.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
	if (at.tv_nsec >= 1000000000L) {
		at.tv_sec++;
		at.tv_nsec -= 1000000000L;
	}
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

int main(int argc, char **argv)
{
	if (argc != 7) {
		fprintf(stderr, "usage: synflood ADDRESS PORT FIRST-SOURCE SOURCES COUNT RATE\n");
		return 2;
	}
	unsigned char to[16], from[16];
	int family = strchr(argv[1], ':') ? AF_INET6 : AF_INET;
	size_t width = family == AF_INET6 ? 16 : 4;
	uint32_t sources = (uint32_t)atol(argv[4]);
	long count = atol(argv[5]), rate = atol(argv[6]);
	if (inet_pton(family, argv[1], to) != 1 || inet_pton(family, argv[3], from) != 1 ||
	    !sources || count <= 0 || rate <= 0) {
		fprintf(stderr, "synflood: an address or a number is wrong\n");
		return 2;
	}
	int out = socket(family, SOCK_RAW, IPPROTO_RAW); /* the header is ours: raw(7), ipv6(7) */
	if (out < 0) {
		perror("synflood: raw socket");
		return 1;
	}
	int size = 1 << 22;
	setsockopt(out, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);

	struct sockaddr_storage peer = {.ss_family = (sa_family_t)family};
	if (family == AF_INET)
		memcpy(&((struct sockaddr_in *)&peer)->sin_addr, to, width);
	else
		memcpy(&((struct sockaddr_in6 *)&peer)->sin6_addr, to, width);
	socklen_t peer_bytes =
		family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);

	unsigned char packet[sizeof(struct ip6_hdr) + sizeof(struct tcphdr)] = {0};
	size_t header = family == AF_INET ? sizeof(struct iphdr) : sizeof(struct ip6_hdr);
	struct tcphdr *tcp = (struct tcphdr *)(packet + header);
	size_t bytes = header + sizeof *tcp;
	unsigned char *source = packet + (family == AF_INET ? 12 : 8);
	if (family == AF_INET) {
		struct iphdr *ip = (struct iphdr *)packet;
		ip->version = 4;
		ip->ihl = 5;
		ip->ttl = 64;
		ip->protocol = IPPROTO_TCP;
		ip->tot_len = htons((uint16_t)bytes);
	} else {
		struct ip6_hdr *ip = (struct ip6_hdr *)packet;
		ip->ip6_flow = htonl(6u << 28);
		ip->ip6_plen = htons(sizeof *tcp);
		ip->ip6_nxt = IPPROTO_TCP;
		ip->ip6_hlim = 64;
	}
	memcpy(source, from, width);
	memcpy(source + width, to, width);
	tcp->dest = htons((uint16_t)atoi(argv[2]));
	tcp->doff = 5;
	tcp->syn = 1;
	tcp->window = htons(64240);

	uint32_t first;
	memcpy(&first, from + width - 4, 4);
	struct timespec start;
	clock_gettime(CLOCK_MONOTONIC, &start);
	long sent = 0;
	for (long number = 0; number < count; number++) {
		if (number % 64 == 0)
			wait_until(&start, (double)number / (double)rate);
		uint32_t last = htonl(ntohl(first) + (uint32_t)number % sources);
		memcpy(source + width - 4, &last, 4);
		tcp->source = htons((uint16_t)(1024 + number / sources % 60000));
		tcp->seq = htonl((uint32_t)number);
		tcp->check = 0;
		uint32_t sum = sum_of(source, 2 * width, IPPROTO_TCP + sizeof *tcp);
		tcp->check = folded(sum_of(tcp, sizeof *tcp, sum));
		if (sendto(out, packet, bytes, 0, (struct sockaddr *)&peer, peer_bytes) >= 0)
			sent++;
		else if (errno != ENOBUFS) {
			perror("synflood: send");
			return 1;
		}
	}
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	double took = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
	printf("%ld %.0f\n", sent, (double)sent / took);
	return 0;
}

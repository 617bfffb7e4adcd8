/* What one thread of the answering loop owns. */
#ifndef NP_DNS_BATCH_H
#define NP_DNS_BATCH_H

#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include "dns.h"

enum { SPREAD = 64 }; /* so that the packets of a batch do not share the same lines of the cache */

struct np_batch {
	struct mmsghdr in[NP_BATCH], out[NP_BATCH];
	struct iovec in_iov[NP_BATCH], out_iov[NP_BATCH];
	struct np_query query[NP_BATCH];
	int answered[NP_ZONES];
	struct sockaddr_in6 peer[NP_BATCH]; /* or sockaddr_in */
	union {
		struct cmsghdr align;
		uint8_t bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
	} control[NP_BATCH];
	uint8_t packet[NP_BATCH][NP_PACKET + SPREAD];
	uint8_t reply[NP_BATCH][NP_UDP_EDNS + SPREAD];
};

struct np_worker {
	_Alignas(64) struct np_counters counters;
	struct np_table *table;
	struct np_reader *reader;
	struct np_limit *_Atomic limit; /* NULL: none */
	int misses, epoll;
	const int *sockets;
	pthread_t thread;
	struct np_batch batch;
};

void np_batch_init(struct np_batch *b);
int np_batch_serve(struct np_worker *w, int fd, uint32_t socket);

#endif

/* Up to NP_BATCH packets read, answered and sent with two system calls. */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "batch.h"

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void bump(uint64_t *counter, uint64_t by)
{
	__atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED); /* of this thread alone; others read */
}

void np_batch_init(struct np_batch *b)
{
	for (int i = 0; i < NP_BATCH; i++) {
		b->in_iov[i] = (struct iovec){ b->packet[i], NP_PACKET };
		b->in[i].msg_hdr.msg_iov = &b->in_iov[i];
		b->in[i].msg_hdr.msg_iovlen = 1;
		b->in[i].msg_hdr.msg_name = &b->peer[i];
		b->in[i].msg_hdr.msg_control = b->control[i].bytes;
		b->out_iov[i].iov_base = b->reply[i];
		b->out[i].msg_hdr.msg_iov = &b->out_iov[i];
		b->out[i].msg_hdr.msg_iovlen = 1;
	}
}

/* The packet info of a query as that of its answer: the source set, the interface left to routing.
 * A link-local address of IPv6 means nothing without its interface. NULL: there is none. */
static const void *turn_info(struct msghdr *m, int *family, int *len)
{
	struct cmsghdr *c = m->msg_controllen ? CMSG_FIRSTHDR(m) : NULL;

	if (c && c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
		struct in_pktinfo *info = (void *)CMSG_DATA(c);

		*family = AF_INET;
		*len = sizeof(*info);
		info->ipi_ifindex = 0;
		info->ipi_addr.s_addr = 0;
		return info;
	}
	if (c && c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
		struct in6_pktinfo *info = (void *)CMSG_DATA(c);

		*family = AF_INET6;
		*len = sizeof(*info);
		if (!IN6_IS_ADDR_LINKLOCAL(&info->ipi6_addr))
			info->ipi6_ifindex = 0;
		return info;
	}
	*family = *len = 0;
	return NULL;
}

/* A packet for Python. When its queue is full the packet is lost, as on the network. */
static void leave(struct np_worker *w, const struct np_batch *b, int i, uint32_t socket, uint64_t arrived)
{
	const struct mmsghdr *in = &b->in[i];
	struct np_miss miss = { .socket = socket, .arrived = arrived };
	struct iovec parts[2] = { { &miss, sizeof(miss) }, { (void *)b->packet[i], in->msg_len } };
	struct msghdr m = { .msg_iov = parts, .msg_iovlen = 2 };
	int family, len;
	const void *info = turn_info((struct msghdr *)&in->msg_hdr, &family, &len);

	miss.address_len = in->msg_hdr.msg_namelen;
	memcpy(miss.address, &b->peer[i], sizeof(miss.address));
	miss.info_family = (uint32_t)family;
	miss.info_len = (uint32_t)len;
	if (info)
		memcpy(miss.info, info, (size_t)len);
	if (sendmsg(w->misses, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		bump(&w->counters.busy, 1);
	else
		bump(&w->counters.to_python, 1);
}

/* Over the rate: -EBUSY, or a response cut down to its question, with TC. */
static int limited(struct np_worker *w, const struct np_batch *b, int i, uint8_t *reply, int len, uint64_t now)
{
	struct np_limit *limit = atomic_load_explicit(&w->limit, memory_order_acquire);
	const struct sockaddr_in6 *peer = &b->peer[i];
	int v6 = peer->sin6_family == AF_INET6, end = NP_HEADER;
	const void *address = v6 ? (const void *)&peer->sin6_addr : &((const struct sockaddr_in *)peer)->sin_addr;

	if (!limit)
		return len;
	switch (np_limit_take(limit, address, peer->sin6_family, now)) {
	case 0:
		return len;
	case 1:
		if (np_get16(reply + 4)) { /* the question is one name, uncompressed, as np_answer put it */
			while (reply[end])
				end += 1 + reply[end];
			end += 5;
		}
		reply[2] |= NP_TC >> 8;
		memset(reply + 6, 0, 6);
		bump(&w->counters.slipped, 1);
		return end;
	default:
		bump(&w->counters.limited, 1);
		return -EBUSY;
	}
}

static void count(struct np_worker *w, const struct np_query *q, const uint8_t *reply)
{
	int type = q->state == NP_ASK ? q->type : 0, zone = np_query_zone(q);

	bump(&w->counters.requests[zone][type < NP_COUNT_TYPES ? type : 0], 1);
	bump(&w->counters.responses[zone][reply[3] & 15], 1);
	w->batch.answered[zone]++;
}

/* Answer packet i, or leave it; the response becomes number n of those to send. Returns n, or n + 1. */
static int answer_one(struct np_worker *w, struct np_batch *b, int i, int n, uint32_t socket, uint64_t now)
{
	struct msghdr *out = &b->out[n].msg_hdr, *in = &b->in[i].msg_hdr;
	int family, info_len;
	int len = np_answer_end(w->table, &b->query[i], b->reply[n], NP_UDP_EDNS);

	if (len == NP_PYTHON) {
		leave(w, b, i, socket, now);
		return n;
	}
	if (len <= 0) {
		bump(&w->counters.silence, 1);
		return n;
	}
	len = limited(w, b, i, b->reply[n], len, now);
	if (len < 0)
		return n;
	count(w, &b->query[i], b->reply[n]);
	b->out_iov[n].iov_len = (size_t)len;
	out->msg_name = in->msg_name;
	out->msg_namelen = in->msg_namelen;
	out->msg_control = turn_info(in, &family, &info_len) ? in->msg_control : NULL;
	out->msg_controllen = out->msg_control ? in->msg_controllen : 0;
	return n + 1;
}

/* A response that cannot go (no route back, port 0, a full buffer) is passed over. */
static void send_all(struct np_worker *w, struct np_batch *b, int fd, int n)
{
	for (int at = 0; at < n;) {
		int sent = sendmmsg(fd, b->out + at, (unsigned int)(n - at), MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0) {
			bump(&w->counters.send, 1);
			sent = 1;
		}
		at += sent;
	}
}

static void count_time(struct np_worker *w, uint64_t spent)
{
	static const uint64_t bounds[NP_COUNT_BOUNDS - 1] = { /* ns; as counters.BOUNDS */
		100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 25000000, 50000000, 100000000,
		250000000, 500000000, 1000000000, 2500000000, 5000000000,
	};
	int i = 0;

	while (i < NP_COUNT_BOUNDS - 1 && spent > bounds[i])
		i++;
	for (int zone = 0; zone < NP_ZONES; zone++) {
		uint64_t n = (uint64_t)w->batch.answered[zone];

		if (!n)
			continue;
		bump(&w->counters.buckets[zone][i], n);
		bump(&w->counters.nanoseconds[zone], spent * n);
		w->batch.answered[zone] = 0;
	}
}

/* What waits in one socket, at most one batch. Returns how many packets there were. */
int np_batch_serve(struct np_worker *w, int fd, uint32_t socket)
{
	struct np_batch *b = &w->batch;
	uint64_t began;
	int n = 0, got;

	for (int i = 0; i < NP_BATCH; i++) {
		b->in[i].msg_hdr.msg_namelen = sizeof(b->peer[i]);
		b->in[i].msg_hdr.msg_controllen = sizeof(b->control[i].bytes);
	}
	got = recvmmsg(fd, b->in, NP_BATCH, MSG_DONTWAIT, NULL);
	if (got <= 0)
		return 0;
	began = now_ns();
	np_reader_online(np_table_readers(w->table), w->reader);
	for (int i = 0; i < got; i++)
		np_answer_begin(w->table, &b->query[i], b->packet[i], (int)b->in[i].msg_len);
	for (int i = 0; i < got; i++)
		np_answer_fetch(w->table, &b->query[i]);
	for (int i = 0; i < got; i++)
		n = answer_one(w, b, i, n, socket, began);
	np_reader_offline(w->reader);
	send_all(w, b, fd, n);
	count_time(w, now_ns() - began);
	return got;
}

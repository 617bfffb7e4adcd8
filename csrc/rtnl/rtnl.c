/* Netlink sockets in other namespaces, and batches of requests with one answer each. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/netlink.h>

#include "rtnl.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

/* A netlink socket of the namespace at path ("" or NULL: the caller's), with the kernel's own words
 * in refusals and without the request echoed. The thread is back in its own namespace on return.
 * Returns the descriptor or -errno. */
int np_socket_open(const char *netns, int protocol)
{
	int one = 1, home = -1, fd = np_netns_visit(netns, &home);

	if (fd < 0)
		return fd;
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	if (fd < 0)
		fd = -errno;
	np_netns_return(home);
	if (fd >= 0) {
		setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one));
		setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one));
	}
	return fd;
}

/* The index of a link of the namespace at path, or -errno. Asked without netlink, because that waits for
 * the RTNL lock, which a deletion holds long. */
int np_link_index(const char *netns, const char *name)
{
	struct ifreq asked = { 0 };
	int home, fd, result = np_netns_visit(netns, &home);

	if (result < 0)
		return result;
	strncpy(asked.ifr_name, name, IFNAMSIZ - 1);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	result = fd < 0 || ioctl(fd, SIOCGIFINDEX, &asked) < 0 ? -errno : asked.ifr_ifindex;
	if (fd >= 0)
		close(fd);
	np_netns_return(home);
	return result;
}

/* What the kernel calls the namespace at path, once a boot (5.14); 0 where it does not, or -errno. */
long long np_netns_cookie(const char *netns)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);
	int home, fd, result = np_netns_visit(netns, &home);

	if (result < 0)
		return result;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size))
		cookie = 0;
	if (fd >= 0)
		close(fd);
	np_netns_return(home);
	return (long long)cookie;
}

/* More requests than this in one send could overflow the receive buffer with their answers: an
 * answer to RTM_GETLINK is charged about 4 kB, the default buffer is 208 kB. */
#define BATCH_CHUNK 32

struct np_batch {
	unsigned int first, count, answered; /* sequence numbers first .. first + count - 1 */
	int *errnos;
	char *out;
	int used, size;
};

/* Keep a message for the caller: replies, and refusals with the kernel's own words (ext ack). */
static int batch_keep(struct np_batch *b, const struct nlmsghdr *h)
{
	int len = NLMSG_ALIGN(h->nlmsg_len);

	if (b->used + len > b->size)
		return -EMSGSIZE;
	memcpy(b->out + b->used, h, h->nlmsg_len);
	b->used += len;
	return 0;
}

static int batch_read(struct np_batch *b, char *buf, int len)
{
	int result = 0, kept;

	for (struct nlmsghdr *h = (void *)buf; NLMSG_OK(h, (unsigned int)len); h = NLMSG_NEXT(h, len)) {
		unsigned int slot = h->nlmsg_seq - b->first;

		if (slot >= b->count)
			continue; /* an answer to an earlier batch that failed half way */
		if (h->nlmsg_type == NLMSG_ERROR) {
			b->errnos[slot] = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
			b->answered++;
			if (!b->errnos[slot])
				continue;
		}
		kept = batch_keep(b, h);
		result = result ? result : kept;
	}
	return result;
}

/* Answers lie ready when the send returns, one message each: several are taken by one call. */
#define SLOTS 8
#define SLOT_SIZE 16384

static int batch_collect(struct np_batch *b, int fd, unsigned int until)
{
	static __thread char buf[SLOTS][SLOT_SIZE] __attribute__((aligned(NLMSG_ALIGNTO)));
	struct iovec parts[SLOTS];
	struct mmsghdr heads[SLOTS];
	int result = 0;

	for (int i = 0; i < SLOTS; i++) {
		parts[i] = (struct iovec){ .iov_base = buf[i], .iov_len = SLOT_SIZE };
		heads[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &parts[i], .msg_iovlen = 1 } };
	}
	while (b->answered < until) {
		unsigned int want = until - b->answered;
		int got = recvmmsg(fd, heads, want < SLOTS ? want : SLOTS, MSG_WAITFORONE, NULL);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		for (int i = 0; i < got; i++) {
			int full = batch_read(b, buf[i], heads[i].msg_len); /* go on: the socket must stay in step */

			result = result ? result : full;
		}
	}
	return result;
}

/* Send n requests (numbered from the first one's sequence number on, each with NLM_F_ACK) and wait
 * for the acknowledgement of each: errnos[i] is 0 or -errno. Replies and refusals are copied to
 * out. Returns the bytes in out, or -errno when the socket itself fails. */
int np_batch_send(int fd, char *buf, int len, int *errnos, int n, char *out, int size)
{
	struct np_batch b = { .count = n, .errnos = errnos, .out = out, .size = size };
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	unsigned int sent = 0;
	int at = 0, result;

	if (len < (int)sizeof(struct nlmsghdr))
		return -EINVAL;
	b.first = ((struct nlmsghdr *)buf)->nlmsg_seq;
	while (at < len) {
		int start = at;

		for (int i = 0; i < BATCH_CHUNK && at < len; i++, sent++) {
			unsigned int one = ((struct nlmsghdr *)(buf + at))->nlmsg_len;

			if (one < sizeof(struct nlmsghdr) || one > (unsigned int)(len - at) || sent >= (unsigned int)n)
				return -EINVAL;
			at += NLMSG_ALIGN(one);
		}
		do
			result = sendto(fd, buf + start, at - start, 0, (void *)&kernel, sizeof(kernel));
		while (result < 0 && errno == EINTR);
		if (result < 0)
			return -errno;
		result = batch_collect(&b, fd, sent);
		if (result < 0)
			return result;
	}
	return b.used;
}

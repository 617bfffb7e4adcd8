/* A fresh veth pair with all that hangs on it, in our namespace and the pod's, by one call without the GIL.
 *
 * It is linkput.py's and factput.py's way in the same order; what is fresh needs no looking up. It is whole
 * or nothing: whatever is refused, all that was made is taken back and the caller goes the general way,
 * which finds the words (so nothing here knows any). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <linux/rtnetlink.h>

#include "pair.h"
#include "rtnl.h"

#define REPLY 16384      /* a link's answer, without statistics, is below 2 kB */
#define OPERSTATE_UP 6   /* RFC 2863; linux/if.h and net/if.h do not go together */
#define CARRIED_MS 1500  /* that a pair may take; linkput.py */

struct pair_link {
	int index, other; /* its own and its other end's */
	uint8_t operstate;
};

struct pair_job {
	const struct np_pair *pair;
	const struct np_pair_item *items;
	int count;
	int own, pod, inside; /* sockets of either namespace, and the pod's namespace */
	struct pair_link link;
	int made, placed; /* the pair; and what our batch brings, neighbours on the bridge too */
	uint64_t lost;    /* what that batch refused of our items but the shapers, by place */
	struct np_batch_text batch; /* last: its buffer is not cleared */
};

static void batch_start(struct pair_job *j)
{
	j->batch.first += j->batch.count;
	j->batch.used = j->batch.full = j->batch.count = 0;
	j->batch.refused = 0;
	j->batch.last = NULL;
}

static void link_read(const struct nlmsghdr *h, struct pair_link *link)
{
	const struct ifinfomsg *head = NLMSG_DATA(h);
	int left = IFLA_PAYLOAD(h);

	link->index = head->ifi_index;
	for (const struct rtattr *a = IFLA_RTA(head); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
		if (a->rta_type == IFLA_LINK)
			memcpy(&link->other, RTA_DATA(a), sizeof(link->other));
		else if (a->rta_type == IFLA_OPERSTATE)
			link->operstate = *(uint8_t *)RTA_DATA(a);
	}
}

/* One datagram of answers. Returns whether the last request has its answer; *result is the first refusal. */
static int batch_answer(struct pair_job *j, const char *in, int size, int *result)
{
	struct np_batch_text *b = &j->batch;
	int done = 0;

	for (const struct nlmsghdr *h = (void *)in; NLMSG_OK(h, size); h = NLMSG_NEXT(h, size)) {
		unsigned int place = h->nlmsg_seq - b->first;
		int error = 0;

		if (place >= b->count)
			continue; /* an answer to an earlier batch that failed half way */
		if (h->nlmsg_type == NLMSG_ERROR)
			error = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
		else if (h->nlmsg_type == RTM_NEWLINK)
			link_read(h, &j->link);
		if (error) {
			b->refused |= 1ull << place;
			*result = *result ? *result : error;
		}
		done |= place == b->count - 1;
	}
	return done;
}

/* Send the batch; its last request is acknowledged, or is a question. 0, or the first refusal. */
static int batch_run(struct pair_job *j, int fd)
{
	char in[REPLY] __attribute__((aligned(NLMSG_ALIGNTO)));
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	struct np_batch_text *b = &j->batch;
	int got, done = 0, result = 0;

	if (b->full)
		return -EMSGSIZE;
	if (b->last->nlmsg_type != RTM_GETLINK)
		b->last->nlmsg_flags |= NLM_F_ACK;
	do
		got = sendto(fd, b->buf, b->used, 0, (void *)&kernel, sizeof(kernel));
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	while (!done) {
		got = recv(fd, in, sizeof(in), 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		done = batch_answer(j, in, got, &result);
	}
	return result;
}

/* A refusal (the number is taken, the namespace has one) is nothing to us: nobody waits for the answer, and
 * batch_answer passes over it. */
static void pair_number(struct pair_job *j)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };

	batch_start(j);
	np_message_number(&j->batch, j->pair->number, j->inside);
	sendto(j->own, j->batch.buf, j->batch.used, 0, (void *)&kernel, sizeof(kernel));
}

/* A pod's path may lead to our own namespace by now (session.py). */
static int pair_refuse_own(const struct pair_job *j)
{
	struct stat pod, own;

	if (fstat(j->inside, &pod) || stat("/proc/thread-self/ns/net", &own))
		return -errno;
	return pod.st_ino == own.st_ino && pod.st_dev == own.st_dev ? -ENOENT : 0;
}

/* Creation tells nothing, so the question for both indexes rides along. A taken name is refused, and then
 * it is somebody else's link that answers. */
static int pair_create(struct pair_job *j)
{
	int result;

	batch_start(j);
	np_message_link_create(&j->batch, j->pair, j->inside);
	np_message_link_get(&j->batch, 0, j->pair->name);
	result = batch_run(j, j->own);
	j->made = !result || j->batch.refused == 2; /* or it went before it was asked for */
	return result;
}

/* No router advertisements and no duplicate detection on the pod's end (linkput.py: _quiet). */
static int pair_quiet(const char *name)
{
	static const char path[] = "/proc/sys/net/ipv6/conf/";
	char pairs[160];
	int errnos[2];

	snprintf(pairs, sizeof(pairs), "%s%s/accept_ra%c0%c%s%s/accept_dad%c0", path, name, 0, 0, path, name, 0);
	np_sysctl_write_here(pairs, errnos, 2);
	for (int i = 0; i < 2; i++)
		if (errnos[i] && errnos[i] != -ENOENT) /* a kernel without IPv6 has neither */
			return errnos[i];
	return 0;
}

/* The one visit in the pod's namespace: its socket, and what is set by files. */
static int pair_visit(struct pair_job *j)
{
	int home, result = np_netns_visit_fd(j->inside, &home);

	if (result < 0)
		return result;
	result = pair_quiet(j->pair->peer);
	if (!result) {
		j->pod = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
		result = j->pod < 0 ? -errno : 0;
	}
	np_netns_return(home);
	return result;
}

/* The items of one side: the shapers, or all others in their order. */
static void pair_items(struct pair_job *j, int inside, int shapers)
{
	for (int i = 0; i < j->count; i++)
		if (j->items[i].inside == inside && (j->items[i].what == NP_ITEM_SHAPER) == shapers)
			np_message_item(&j->batch, &j->items[i], inside ? j->link.other : j->link.index);
}

/* Shapers come before the link is up: to put one on a link that is, the kernel takes its queue away and
 * waits for all processors (dev_deactivate). */
static int pair_settle(struct pair_job *j)
{
	unsigned int before;
	int result;

	batch_start(j);
	if (j->pair->flags & NP_PAIR_CLSACT)
		np_message_clsact(&j->batch, j->link.index);
	pair_items(j, 0, 1);
	np_message_link_finish(&j->batch, j->pair, j->link.index);
	before = j->batch.count;
	pair_items(j, 0, 0);
	j->placed = !j->batch.full;
	result = batch_run(j, j->own);
	j->lost = j->batch.refused >> before;
	return result;
}

static int pair_furnish(struct pair_job *j)
{
	batch_start(j);
	pair_items(j, 1, 1);
	np_message_link_up(&j->batch, j->link.other, NULL);
	if (j->pair->flags & NP_PAIR_LOOPBACK)
		np_message_link_up(&j->batch, 0, "lo");
	pair_items(j, 1, 0);
	return batch_run(j, j->pod);
}

/* Whether our end is the first port of its bridge that carries, and the bridge does not know yet. */
static int pair_rests(const struct pair_job *j)
{
	struct ifreq ask = { .ifr_ifindex = j->pair->master };

	if (!j->pair->master || ioctl(j->own, SIOCGIFNAME, &ask) || ioctl(j->own, SIOCGIFFLAGS, &ask))
		return 0;
	return !(ask.ifr_flags & IFF_RUNNING);
}

/* Until our end carries packets (linkput.py: wait_carried): asking has the kernel look at once (6.8), then
 * for the bridge. With the carrier comes a route for multicast, which a bridge's port has no use for
 * (routemsg.py). */
static void pair_wait(struct pair_job *j)
{
	struct timespec moment = { .tv_nsec = 1000000 };

	for (int i = 0; i < CARRIED_MS; i++) {
		batch_start(j);
		np_message_link_get(&j->batch, j->link.index, NULL);
		if (j->pair->master)
			np_message_multicast_delete(&j->batch, j->link.index);
		j->link.operstate = 0;
		batch_run(j, j->own); /* a refusal of the second says that there is no such route */
		if (!j->link.operstate || j->link.operstate == OPERSTATE_UP)
			break;
		nanosleep(&moment, NULL);
	}
	if (pair_rests(j)) {
		batch_start(j);
		np_message_link_get(&j->batch, j->pair->master, NULL);
		batch_run(j, j->own);
	}
}

/* Routes and neighbours on another link than the pair, which do not go with it: those not refused. */
static void pair_forget(struct pair_job *j)
{
	unsigned int place = 0;

	batch_start(j);
	for (int i = 0; i < j->count; i++) {
		const struct np_pair_item *item = &j->items[i];

		if (item->inside || item->what == NP_ITEM_SHAPER)
			continue;
		if (item->link && !(j->lost & 1ull << place))
			np_message_item_delete(&j->batch, item);
		place++;
	}
	if (j->batch.count)
		batch_run(j, j->own);
}

static void pair_undo(struct pair_job *j)
{
	if (j->placed)
		pair_forget(j);
	batch_start(j);
	np_message_link_delete(&j->batch, j->link.index, j->pair->name);
	batch_run(j, j->own);
}

/* told: a struct np_pair and its items; own: a socket of our namespace; netns: the path of the pod's; seq:
 * the first of 4096 numbers that no request on our socket has had. 0 and all is there, or -errno and
 * nothing is. */
int np_pair_make(int own, unsigned int seq, const char *netns, const char *told, int size)
{
	struct pair_job j;
	int result, more = size - (int)sizeof(struct np_pair);

	if (more < 0 || more % sizeof(struct np_pair_item) || more > NP_PAIR_ITEMS * (int)sizeof(struct np_pair_item))
		return -EINVAL;
	memset(&j, 0, offsetof(struct pair_job, batch.buf));
	j.pair = (const void *)told;
	j.items = (const void *)(told + sizeof(struct np_pair));
	j.count = more / sizeof(struct np_pair_item);
	j.own = own;
	j.pod = -1;
	j.batch.first = seq;
	j.inside = open(netns, O_RDONLY | O_CLOEXEC);
	if (j.inside < 0)
		return -errno;
	result = pair_refuse_own(&j);
	if (!result && j.pair->number)
		pair_number(&j);
	result = result ? result : pair_create(&j);
	result = result ? result : pair_visit(&j);
	result = result ? result : pair_settle(&j);
	result = result ? result : pair_furnish(&j);
	if (!result)
		pair_wait(&j);
	else if (j.made)
		pair_undo(&j);
	if (j.pod >= 0)
		close(j.pod);
	close(j.inside);
	return result;
}

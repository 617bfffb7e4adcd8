/* The elements of a set as text, in the words of facts: one dump, no libnftables. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>

#include "nft.h"

#define ATTRS 16 /* the highest type we look at is below this */
#define LINE_MAX_BYTES 1024
#define ANSWER 65536

struct attrs {
	const struct nlattr *of[ATTRS];
};

static struct attrs attrs_parse(const void *data, size_t len)
{
	struct attrs found = { { NULL } };
	const char *at = data, *end = at + len;

	while (end - at >= (ptrdiff_t)sizeof(struct nlattr)) {
		const struct nlattr *a = (const void *)at;
		int type = a->nla_type & NLA_TYPE_MASK;

		if (a->nla_len < sizeof(*a) || a->nla_len > end - at)
			break;
		if (type < ATTRS)
			found.of[type] = a;
		at += NLA_ALIGN(a->nla_len);
	}
	return found;
}

static const void *payload(const struct nlattr *a, size_t *len)
{
	*len = a ? a->nla_len - sizeof(*a) : 0;
	return a + 1;
}

static struct attrs nested(const struct nlattr *a)
{
	size_t len;
	const void *data = payload(a, &len);

	return attrs_parse(data, len);
}

static int verdict_text(const struct nlattr *a, char *out, size_t size)
{
	struct attrs found = nested(a);
	const struct nlattr *chain = found.of[NFTA_VERDICT_CHAIN];
	const char *name = chain ? (const char *)(chain + 1) : "";
	uint32_t wire;

	if (!found.of[NFTA_VERDICT_CODE])
		return -EINVAL;
	memcpy(&wire, found.of[NFTA_VERDICT_CODE] + 1, sizeof(wire));
	switch ((int)ntohl(wire)) {
	case NF_DROP:
		return snprintf(out, size, "drop");
	case NF_ACCEPT:
		return snprintf(out, size, "accept");
	case NFT_RETURN:
		return snprintf(out, size, "return");
	case NFT_CONTINUE:
		return snprintf(out, size, "continue");
	case NFT_GOTO:
		return snprintf(out, size, "goto %s", name);
	case NFT_JUMP:
		return snprintf(out, size, "jump %s", name);
	}
	return -EINVAL;
}

/* A key or a value in words, a tab before each. Returns the length or -EINVAL. */
static int value_text(const struct nlattr *a, const char **layout, char *out, size_t size)
{
	struct attrs found = nested(a);
	const struct nlattr *data = found.of[NFTA_DATA_VALUE];
	const unsigned char *at;
	size_t used = 0, len;

	out[used++] = '\t';
	if (**layout == 'v') {
		int n = found.of[NFTA_DATA_VERDICT] ?
			verdict_text(found.of[NFTA_DATA_VERDICT], out + used, size - used) : -EINVAL;

		(*layout)++;
		return n < 0 ? n : n + 1;
	}
	if (!data)
		return -EINVAL;
	at = payload(data, &len);
	for (; **layout && **layout != ':'; (*layout)++) {
		int n = np_nft_words(**layout, at, len, out + used, size - used);

		if (n < 0)
			return n;
		n = **layout == '6' || **layout == 'n' ? 16 : 4;
		at += n;
		len -= n;
		used += strlen(out + used);
		out[used++] = '\t';
	}
	return len ? -EINVAL : (int)used - 1;
}

/* The packets that an element's counter has seen; 0 without one. */
static uint64_t packets_of(const struct nlattr *expr)
{
	struct attrs found, counter;
	uint64_t wire;

	if (!expr)
		return 0;
	found = nested(expr);
	if (!found.of[NFTA_EXPR_NAME] || !found.of[NFTA_EXPR_DATA] ||
	    strcmp((const char *)(found.of[NFTA_EXPR_NAME] + 1), "counter"))
		return 0;
	counter = nested(found.of[NFTA_EXPR_DATA]);
	if (!counter.of[NFTA_COUNTER_PACKETS])
		return 0;
	memcpy(&wire, counter.of[NFTA_COUNTER_PACKETS] + 1, sizeof(wire));
	return be64toh(wire);
}

/* "packets<tab>key parts<tab>value parts<newline>" */
static int element_text(struct np_nft_batch *b, const struct nlattr *a, const char *layout)
{
	struct attrs found = nested(a);
	char *out;
	int n;

	if (np_nft_reserve(b, LINE_MAX_BYTES))
		return -ENOMEM;
	if (!found.of[NFTA_SET_ELEM_KEY])
		return -EINVAL;
	out = b->data + b->used;
	n = snprintf(out, 24, "%llu", (unsigned long long)packets_of(found.of[NFTA_SET_ELEM_EXPR]));
	b->used += n;
	n = value_text(found.of[NFTA_SET_ELEM_KEY], &layout, b->data + b->used, 300);
	if (n < 0)
		return n;
	b->used += n;
	if (*layout++ == ':') {
		if (!found.of[NFTA_SET_ELEM_DATA])
			return -EINVAL;
		n = value_text(found.of[NFTA_SET_ELEM_DATA], &layout, b->data + b->used, 300);
		if (n < 0)
			return n;
		b->used += n;
	}
	b->data[b->used++] = '\n';
	return 0;
}

static int message_text(struct np_nft_batch *b, const struct nlmsghdr *h, const char *layout)
{
	const char *body = (const char *)NLMSG_DATA(h) + sizeof(struct nfgenmsg);
	struct attrs found = attrs_parse(body, (const char *)h + h->nlmsg_len - body);
	const char *at, *end;
	size_t len;

	if (!found.of[NFTA_SET_ELEM_LIST_ELEMENTS])
		return 0;
	at = payload(found.of[NFTA_SET_ELEM_LIST_ELEMENTS], &len);
	for (end = at + len; at < end; at += NLA_ALIGN(((const struct nlattr *)at)->nla_len)) {
		int err = element_text(b, (const void *)at, layout);

		if (err)
			return err;
	}
	return 0;
}

/* Read answers to the end of the dump, whatever was wrong with one: the socket must stay in step. What
 * another commit spoils (-EAGAIN) is there all the same, with gaps or twice. */
static int answers_text(struct np_nft_batch *b, int fd, const char *layout)
{
	static __thread char buf[ANSWER] __attribute__((aligned(NLMSG_ALIGNTO)));
	int result = 0, spoilt = 0;

	for (;;) {
		ssize_t len = recv(fd, buf, sizeof(buf), 0);

		if (len < 0 && errno == EINTR)
			continue;
		if (len < 0)
			return -errno;
		for (struct nlmsghdr *h = (void *)buf; NLMSG_OK(h, (size_t)len); h = NLMSG_NEXT(h, len)) {
			if (h->nlmsg_flags & NLM_F_DUMP_INTR)
				spoilt = -EAGAIN; /* somebody committed meanwhile */
			if (h->nlmsg_type == NLMSG_DONE)
				return result ? result : spoilt;
			if (h->nlmsg_type == NLMSG_ERROR)
				return ((struct nlmsgerr *)NLMSG_DATA(h))->error;
			if (!result)
				result = message_text(b, h, layout);
		}
	}
}

/* The elements of a set, a line each, into the batch's buffer. Returns 0 or -errno: -EAGAIN when another
 * commit came between (some may lack), -EINVAL for an element that is not of the layout's types. */
int np_nft_list(struct np_nft_batch *b, int fd, const char *table, const char *set, const char *layout)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	int err = np_nft_ask(b, table, set);

	if (err)
		return err;
	if (sendto(fd, b->data, b->used, 0, (void *)&kernel, sizeof(kernel)) < 0)
		return -errno;
	b->used = 0;
	return answers_text(b, fd, layout);
}

/* One element, by the key parts in text (blanks between), as np_nft_list has it. The layout is the
 * whole one. Returns 0 or -errno: -ENOENT when the set does not hold it. */
int np_nft_get(struct np_nft_batch *b, int fd, const char *table, const char *set, const char *layout,
	       const char *text, size_t len)
{
	static __thread char buf[ANSWER] __attribute__((aligned(NLMSG_ALIGNTO)));
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	size_t key_len = strcspn(layout, ":");
	const struct nlmsghdr *h = (void *)buf;
	char key[64] = "";
	ssize_t got;
	int err;

	if (key_len >= sizeof(key))
		return -EINVAL;
	memcpy(key, layout, key_len);
	err = np_nft_ask_for(b, table, set, key, text, len);
	if (err)
		return err;
	if (sendto(fd, b->data, b->used, 0, (void *)&kernel, sizeof(kernel)) < 0)
		return -errno;
	b->used = 0;
	do
		got = recv(fd, buf, sizeof(buf), 0);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	if (!NLMSG_OK(h, (size_t)got))
		return -EBADMSG;
	if (h->nlmsg_type == NLMSG_ERROR)
		return ((struct nlmsgerr *)NLMSG_DATA(h))->error;
	return message_text(b, h, layout);
}

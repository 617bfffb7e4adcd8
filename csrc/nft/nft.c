/* Elements of nftables sets as one batch of netlink messages: what nft does, without its parser.
 *
 * The text names an element a line: the key's parts, then the value's, with one blank between. A
 * layout says of what types they are: "4ps:c" is address . protocol . port : class, "4:v" a verdict.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>

#include "nft.h"

/* An attribute's length has 16 bits, and the list of elements is one attribute. */
#define LIST_MAX 60000
#define ELEMENT_MAX 512 /* keys and data have 64 bytes at most, a chain's name 127 */
#define REGISTERS 64
#define CHAIN_NAME_MAX 127

int np_nft_reserve(struct np_nft_batch *b, size_t more)
{
	size_t size = b->size ? b->size : 65536;
	char *data;

	while (size < b->used + more)
		size *= 2;
	if (size == b->size)
		return 0;
	data = realloc(b->data, size);
	if (!data)
		return -ENOMEM;
	b->data = data;
	b->size = size;
	return 0;
}

/* Room was reserved by the caller, here and below. Returns where the message starts. */
static size_t message_open(struct np_nft_batch *b, int type, int flags, int family, int resource)
{
	size_t start = b->used;
	struct nlmsghdr head = { .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags, .nlmsg_seq = b->seq++ };
	struct nfgenmsg body = { .nfgen_family = family, .version = NFNETLINK_V0, .res_id = htons(resource) };

	memcpy(b->data + b->used, &head, sizeof(head));
	memcpy(b->data + b->used + sizeof(head), &body, sizeof(body));
	b->used += sizeof(head) + sizeof(body);
	return start;
}

static void message_close(struct np_nft_batch *b, size_t start)
{
	uint32_t len = b->used - start;

	memcpy(b->data + start, &len, sizeof(len));
}

static void attr_put(struct np_nft_batch *b, int type, const void *payload, size_t len)
{
	struct nlattr head = { .nla_len = sizeof(head) + len, .nla_type = type };

	memcpy(b->data + b->used, &head, sizeof(head));
	memcpy(b->data + b->used + sizeof(head), payload, len);
	memset(b->data + b->used + sizeof(head) + len, 0, NLA_ALIGN(len) - len);
	b->used += sizeof(head) + NLA_ALIGN(len);
}

static size_t nest_open(struct np_nft_batch *b, int type)
{
	size_t start = b->used;

	attr_put(b, type | NLA_F_NESTED, NULL, 0);
	return start;
}

static void nest_close(struct np_nft_batch *b, size_t start)
{
	uint16_t len = b->used - start;

	memcpy(b->data + start, &len, sizeof(len));
}

/* Cut the next word off the line. */
static struct np_field word(const char **at, const char *end)
{
	struct np_field f = { .at = *at };
	const char *blank = memchr(*at, ' ', end - *at);

	f.len = (blank ? blank : end) - *at;
	*at = blank ? blank + 1 : end;
	return f;
}

static int verdict_code(const struct np_field *f)
{
	static const struct { const char *name; int code; } known[] = {
		{ "drop", NF_DROP }, { "accept", NF_ACCEPT }, { "goto", NFT_GOTO },
		{ "jump", NFT_JUMP }, { "return", NFT_RETURN }, { "continue", NFT_CONTINUE },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (strlen(known[i].name) == f->len && !memcmp(known[i].name, f->at, f->len))
			return known[i].code;
	return NF_MAX_VERDICT + 1;
}

static int verdict_put(struct np_nft_batch *b, const char **at, const char *end)
{
	struct np_field f = word(at, end);
	int code = verdict_code(&f), chained = code == NFT_GOTO || code == NFT_JUMP;
	uint32_t wire = htonl(code);
	size_t nest;

	if (code > NF_MAX_VERDICT)
		return -EINVAL;
	nest = nest_open(b, NFTA_DATA_VERDICT);
	attr_put(b, NFTA_VERDICT_CODE, &wire, sizeof(wire));
	if (chained) {
		char name[CHAIN_NAME_MAX + 1] = "";

		f = word(at, end);
		if (!f.len || f.len > CHAIN_NAME_MAX)
			return -EINVAL;
		memcpy(name, f.at, f.len);
		attr_put(b, NFTA_VERDICT_CHAIN, name, f.len + 1);
	}
	nest_close(b, nest);
	return 0;
}

/* The parts that the layout names up to its colon or end, as one value. */
static int value_put(struct np_nft_batch *b, int type, const char **layout, const char **at, const char *end)
{
	unsigned char value[REGISTERS + 16];
	size_t used = 0, nest = nest_open(b, type);
	int len = 0;

	if (**layout == 'v') {
		(*layout)++;
		len = verdict_put(b, at, end);
		nest_close(b, nest);
		return len;
	}
	for (; **layout && **layout != ':'; (*layout)++) {
		struct np_field f = word(at, end);

		len = np_nft_field(**layout, &f, value + used);
		if (len < 0)
			return len;
		used += len;
		if (used > REGISTERS)
			return -EINVAL;
	}
	attr_put(b, NFTA_DATA_VALUE, value, used);
	nest_close(b, nest);
	return 0;
}

static int element_put(struct np_nft_batch *b, const char *layout, const char *at, const char *end)
{
	size_t nest = nest_open(b, NFTA_LIST_ELEM);
	int err = value_put(b, NFTA_SET_ELEM_KEY, &layout, &at, end);

	if (!err && *layout == ':') {
		layout++;
		err = value_put(b, NFTA_SET_ELEM_DATA, &layout, &at, end);
	}
	if (!err && at != end)
		err = -EINVAL;
	nest_close(b, nest);
	return err;
}

/* The question for all elements of a set, alone in the buffer. */
int np_nft_ask(struct np_nft_batch *b, const char *table, const char *set)
{
	size_t start;
	int err = np_nft_reserve(b, 2 * ELEMENT_MAX + strlen(table) + strlen(set));

	if (err)
		return err;
	b->used = 0;
	start = message_open(b, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM, NLM_F_DUMP, NFPROTO_INET, 0);
	attr_put(b, NFTA_SET_ELEM_LIST_TABLE, table, strlen(table) + 1);
	attr_put(b, NFTA_SET_ELEM_LIST_SET, set, strlen(set) + 1);
	message_close(b, start);
	return 0;
}

/* Start a batch, in one transaction of nftables. Returns 0 or -errno. */
int np_nft_begin(struct np_nft_batch *b)
{
	int err = np_nft_reserve(b, ELEMENT_MAX);

	b->used = 0;
	if (!err)
		message_close(b, message_open(b, NFNL_MSG_BATCH_BEGIN, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
	return err;
}

/* As many elements as one message takes; *at moves on. */
static int message_put(struct np_nft_batch *b, int type, const char *table, const char *set,
		       const char *layout, const char **at, const char *end)
{
	size_t start, list;
	int err = np_nft_reserve(b, LIST_MAX + 2 * ELEMENT_MAX + strlen(table) + strlen(set));

	if (err)
		return err;
	start = message_open(b, NFNL_SUBSYS_NFTABLES << 8 | type, type == NFT_MSG_NEWSETELEM ? NLM_F_CREATE : 0,
			     NFPROTO_INET, 0);
	attr_put(b, NFTA_SET_ELEM_LIST_TABLE, table, strlen(table) + 1);
	attr_put(b, NFTA_SET_ELEM_LIST_SET, set, strlen(set) + 1);
	list = nest_open(b, NFTA_SET_ELEM_LIST_ELEMENTS);
	while (*at < end && b->used - list < LIST_MAX) {
		const char *line = memchr(*at, '\n', end - *at);
		const char *stop = line ? line : end;

		err = element_put(b, layout, *at, stop);
		if (err)
			return err;
		*at = line ? line + 1 : end;
	}
	nest_close(b, list);
	message_close(b, start);
	return 0;
}

/* The question for one element, alone in the buffer; the layout names a key. */
int np_nft_ask_for(struct np_nft_batch *b, const char *table, const char *set, const char *layout,
		   const char *text, size_t len)
{
	const char *at = text;

	b->used = 0;
	return message_put(b, NFT_MSG_GETSETELEM, table, set, layout, &at, text + len);
}

/* Add the elements of text to the batch, or their removal (then the layout names a key alone).
 * Returns 0 or -errno: -EINVAL for words that are not of the layout's types. */
int np_nft_elements(struct np_nft_batch *b, int remove, const char *table, const char *set,
		    const char *layout, const char *text, size_t len)
{
	const char *at = text, *end = text + len;
	int err = 0, type = remove ? NFT_MSG_DELSETELEM : NFT_MSG_NEWSETELEM;

	while (at < end && !err)
		err = message_put(b, type, table, set, layout, &at, end);
	return err;
}

/* The first refusal that the kernel answered with; 0 without any. It answers while it takes the batch
 * in, and says nothing when all went well. */
static int first_refusal(int fd)
{
	char buf[16384] __attribute__((aligned(NLMSG_ALIGNTO)));
	int result = 0;

	for (;;) {
		ssize_t len = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);

		if (len < 0 && errno == EINTR)
			continue;
		if (len < 0 && errno == ENOBUFS) {
			result = result ? result : -ENOBUFS; /* more refusals than the buffer took */
			continue;
		}
		if (len <= 0)
			return result;
		for (struct nlmsghdr *h = (void *)buf; NLMSG_OK(h, (size_t)len); h = NLMSG_NEXT(h, len))
			if (h->nlmsg_type == NLMSG_ERROR && !result)
				result = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
	}
}

/* End the batch and have the kernel commit it: all of it, or nothing. Returns 0 or -errno. */
int np_nft_commit(struct np_nft_batch *b, int fd)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	int room, err = np_nft_reserve(b, ELEMENT_MAX);
	ssize_t sent;

	if (err)
		return err;
	message_close(b, message_open(b, NFNL_MSG_BATCH_END, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES));
	room = b->used + 65536;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	do
		sent = sendto(fd, b->data, b->used, 0, (void *)&kernel, sizeof(kernel));
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return -errno;
	return first_refusal(fd);
}

void np_nft_free(struct np_nft_batch *b)
{
	free(b->data);
	*b = (struct np_nft_batch){ 0 };
}

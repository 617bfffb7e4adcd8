/* rtnetlink requests for a pair and what hangs on it, attribute by attribute as linkmsg.py, routemsg.py and
 * qdiscmsg.py write them: a test compares what the kernel makes of either. */
#define _GNU_SOURCE
#include <string.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/net_namespace.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>

#include "pair.h"

#define OURS 78               /* model/facts.py: ROUTE_PROTOCOL */
#define GROUP_NEW 0x6e700001  /* ours.py */
#define SHAPER_LATENCY 25     /* ms; qdiscmsg.py */
#define SKIP_STATS (1 << 3)   /* RTEXT_FILTER_SKIP_STATS */
#define IPV6_MIN_MTU 1280     /* RFC 8200, section 5 */
#define IFA_PROTOCOL 11       /* IFA_PROTO, since 5.18 */
#define NDA_PROTOCOL_OURS 12  /* NDA_PROTOCOL, since 4.20 */

static void *room(struct np_batch_text *b, int size)
{
	char *at = b->buf + b->used;
	int left = sizeof(b->buf) - b->used;

	if (b->full || (int)NLMSG_ALIGN(size) > left) {
		b->full = 1;
		return NULL;
	}
	b->used += NLMSG_ALIGN(size);
	memset(at + size, 0, NLMSG_ALIGN(size) - size);
	if (b->last)
		b->last->nlmsg_len = b->buf + b->used - (char *)b->last;
	return at;
}

/* A request of a type with its fixed part; attributes follow. */
void np_message_begin(struct np_batch_text *b, int type, int flags, const void *head, int size)
{
	struct nlmsghdr *h;

	b->last = NULL;
	h = room(b, sizeof(*h) + size);
	if (!h)
		return;
	*h = (struct nlmsghdr){
		.nlmsg_len = NLMSG_LENGTH(size),
		.nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | flags,
		.nlmsg_seq = b->first + b->count++,
	};
	memcpy(NLMSG_DATA(h), head, size);
	b->last = h;
}

static void put(struct np_batch_text *b, int type, const void *data, int size)
{
	struct rtattr *a = room(b, RTA_LENGTH(size));

	if (!a)
		return;
	a->rta_type = type;
	a->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(a), data, size);
}

static void put_u32(struct np_batch_text *b, int type, uint32_t value)
{
	put(b, type, &value, sizeof(value));
}

static void put_text(struct np_batch_text *b, int type, const char *text)
{
	put(b, type, text, strlen(text) + 1);
}

static struct rtattr *nest(struct np_batch_text *b, int type)
{
	struct rtattr *a = room(b, RTA_LENGTH(0));

	if (a)
		a->rta_type = type | NLA_F_NESTED;
	return a;
}

static void nest_end(struct np_batch_text *b, struct rtattr *a)
{
	if (a)
		a->rta_len = b->buf + b->used - (char *)a;
}

static void link_begin(struct np_batch_text *b, int type, int flags, int index, const char *name, int up)
{
	struct ifinfomsg head = { .ifi_index = index, .ifi_flags = up, .ifi_change = up };

	np_message_begin(b, type, flags, &head, sizeof(head));
	if (name)
		put_text(b, IFLA_IFNAME, name);
}

/* A veth uses one queue; the kernel would make one more for each processor that could ever be. */
static void put_one_queue(struct np_batch_text *b)
{
	put_u32(b, IFLA_NUM_TX_QUEUES, 1);
	put_u32(b, IFLA_NUM_RX_QUEUES, 1);
}

static void put_peer(struct np_batch_text *b, const struct np_pair *p, int peer_ns)
{
	struct rtattr *peer = nest(b, VETH_INFO_PEER);
	void *head = room(b, sizeof(struct ifinfomsg));

	if (head)
		memset(head, 0, sizeof(struct ifinfomsg));
	put_text(b, IFLA_IFNAME, p->peer);
	put_one_queue(b);
	if (p->peer_mtu)
		put_u32(b, IFLA_MTU, p->peer_mtu);
	if (p->flags & NP_PAIR_PEER_MAC)
		put(b, IFLA_ADDRESS, p->peer_mac, sizeof(p->peer_mac));
	put_u32(b, IFLA_NET_NS_FD, peer_ns);
	nest_end(b, peer);
}

/* A number for a namespace, by which ours knows it. */
void np_message_number(struct np_batch_text *b, uint32_t number, int netns)
{
	struct rtgenmsg head = { .rtgen_family = AF_UNSPEC };

	np_message_begin(b, RTM_NEWNSID, 0, &head, sizeof(head));
	put_u32(b, NETNSA_NSID, number);
	put_u32(b, NETNSA_FD, netns);
}

/* Both ends, down; ours is known by its group until it has its alias. */
void np_message_link_create(struct np_batch_text *b, const struct np_pair *p, int peer_ns)
{
	struct rtattr *info, *data;

	link_begin(b, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, p->name, 0);
	put_u32(b, IFLA_GROUP, GROUP_NEW);
	if (p->mtu)
		put_u32(b, IFLA_MTU, p->mtu);
	if (p->flags & NP_PAIR_MAC)
		put(b, IFLA_ADDRESS, p->mac, sizeof(p->mac));
	if (p->master)
		put_u32(b, IFLA_MASTER, p->master);
	put_one_queue(b);
	info = nest(b, IFLA_LINKINFO);
	put(b, IFLA_INFO_KIND, "veth", 4);
	data = nest(b, IFLA_INFO_DATA);
	put_peer(b, p, peer_ns);
	nest_end(b, data);
	nest_end(b, info);
}

/* A link below IPV6_MIN_MTU has no IPv6 at all, and the kernel refuses the setting. */
static void put_no_link_local(struct np_batch_text *b)
{
	uint8_t mode = 1; /* IN6_ADDR_GEN_MODE_NONE */
	struct rtattr *all = nest(b, IFLA_AF_SPEC), *six = nest(b, AF_INET6);

	put(b, IFLA_INET6_ADDR_GEN_MODE, &mode, 1);
	nest_end(b, six);
	nest_end(b, all);
}

static void put_port(struct np_batch_text *b, const struct np_pair *p)
{
	struct rtattr *info = nest(b, IFLA_LINKINFO), *data;

	put(b, IFLA_INFO_KIND, "veth", 4);
	put(b, IFLA_INFO_SLAVE_KIND, "bridge", 6);
	data = nest(b, IFLA_INFO_SLAVE_DATA);
	for (int i = 0; i < p->ports; i++)
		put(b, p->port[i].attribute, &p->port[i].value, 1);
	nest_end(b, data);
	nest_end(b, info);
}

/* Alias, group, the port's options and up: of our end, by its index, so never of somebody else's link. */
void np_message_link_finish(struct np_batch_text *b, const struct np_pair *p, int index)
{
	link_begin(b, RTM_NEWLINK, 0, index, NULL, IFF_UP);
	put_u32(b, IFLA_GROUP, 0);
	put_text(b, IFLA_IFALIAS, p->alias);
	if (p->master && !(p->mtu && p->mtu < IPV6_MIN_MTU))
		put_no_link_local(b);
	if (p->ports)
		put_port(b, p);
}

void np_message_link_get(struct np_batch_text *b, int index, const char *name)
{
	link_begin(b, RTM_GETLINK, 0, index, NULL, 0);
	put_u32(b, IFLA_EXT_MASK, SKIP_STATS);
	if (name)
		put_text(b, IFLA_IFNAME, name);
}

/* By index, or by name. */
void np_message_link_up(struct np_batch_text *b, int index, const char *name)
{
	link_begin(b, RTM_NEWLINK, 0, index, name, IFF_UP);
}

/* By name when there is no index. */
void np_message_link_delete(struct np_batch_text *b, int index, const char *name)
{
	link_begin(b, RTM_DELLINK, 0, index, index ? NULL : name, 0);
}

/* The place for programs at a link, before it is up (qdiscmsg.py: clsact). */
void np_message_clsact(struct np_batch_text *b, int index)
{
	struct tcmsg head = {
		.tcm_ifindex = index,
		.tcm_handle = TC_H_MAKE(TC_H_CLSACT, 0),
		.tcm_parent = TC_H_CLSACT,
	};

	np_message_begin(b, RTM_NEWQDISC, NLM_F_CREATE, &head, sizeof(head));
	put_text(b, TCA_KIND, "clsact");
}

/* The route ff00::/8 that the kernel gives every link that carries (routemsg.py: no_multicast). */
void np_message_multicast_delete(struct np_batch_text *b, int index)
{
	struct rtmsg head = { .rtm_family = AF_INET6, .rtm_dst_len = 8, .rtm_table = RT_TABLE_LOCAL };
	uint8_t dst[16] = { 0xff };

	np_message_begin(b, RTM_DELROUTE, 0, &head, sizeof(head));
	put(b, RTA_DST, dst, sizeof(dst));
	put_u32(b, RTA_OIF, index);
}

static int width(const struct np_pair_item *i)
{
	return i->family == AF_INET ? 4 : 16;
}

static void address_put(struct np_batch_text *b, const struct np_pair_item *i, int index)
{
	int four = i->family == AF_INET;
	struct ifaddrmsg head = {
		.ifa_family = i->family,
		.ifa_prefixlen = i->bits,
		.ifa_flags = four ? 0 : IFA_F_NODAD,
		.ifa_index = index,
	};
	uint8_t ours = OURS;
	uint32_t plain;

	np_message_begin(b, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head));
	put(b, IFA_LOCAL, i->dst, width(i));
	put(b, IFA_ADDRESS, i->dst, width(i));
	put(b, IFA_PROTOCOL, &ours, 1);
	if (!four) {
		put_u32(b, IFA_FLAGS, IFA_F_NODAD);
	} else if (i->bits < 31) {
		memcpy(&plain, i->dst, sizeof(plain));
		put_u32(b, IFA_BROADCAST, plain | htonl(0xffffffffu >> i->bits));
	}
}

static void route_put(struct np_batch_text *b, const struct np_pair_item *i, int index)
{
	struct rtmsg head = {
		.rtm_family = i->family,
		.rtm_dst_len = i->bits,
		.rtm_table = i->table < 256 ? i->table : 0,
		.rtm_protocol = OURS,
		.rtm_scope = i->scope,
		.rtm_type = i->kind,
		.rtm_flags = i->flags & NP_ROUTE_ONLINK ? RTNH_F_ONLINK : 0,
	};
	struct rtattr *metrics;

	np_message_begin(b, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head));
	if (i->bits)
		put(b, RTA_DST, i->dst, width(i));
	if (i->flags & NP_ROUTE_VIA)
		put(b, RTA_GATEWAY, i->via, width(i));
	if (i->flags & NP_ROUTE_SRC)
		put(b, RTA_PREFSRC, i->src, width(i));
	if (i->metric)
		put_u32(b, RTA_PRIORITY, i->metric);
	put_u32(b, RTA_TABLE, i->table);
	if (i->mtu || i->advmss) {
		metrics = nest(b, RTA_METRICS);
		if (i->mtu)
			put_u32(b, RTAX_MTU, i->mtu);
		if (i->advmss)
			put_u32(b, RTAX_ADVMSS, i->advmss);
		nest_end(b, metrics);
	}
	put_u32(b, RTA_OIF, index);
}

static void neighbour_put(struct np_batch_text *b, const struct np_pair_item *i, int index)
{
	struct ndmsg head = { .ndm_family = i->family, .ndm_ifindex = index, .ndm_state = NUD_PERMANENT };
	uint8_t ours = OURS;

	np_message_begin(b, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof(head));
	put(b, NDA_DST, i->dst, width(i));
	put(b, NDA_LLADDR, i->mac, sizeof(i->mac));
	put(b, NDA_PROTOCOL_OURS, &ours, 1);
}

static void neighbour_delete(struct np_batch_text *b, const struct np_pair_item *i)
{
	struct ndmsg head = { .ndm_family = i->family, .ndm_ifindex = i->link };

	np_message_begin(b, RTM_DELNEIGH, 0, &head, sizeof(head));
	put(b, NDA_DST, i->dst, width(i));
}

static void route_delete(struct np_batch_text *b, const struct np_pair_item *i)
{
	struct rtmsg head = {
		.rtm_family = i->family,
		.rtm_dst_len = i->bits,
		.rtm_protocol = OURS,
		.rtm_scope = RT_SCOPE_NOWHERE, /* whichever it has */
	};

	np_message_begin(b, RTM_DELROUTE, 0, &head, sizeof(head));
	if (i->bits)
		put(b, RTA_DST, i->dst, width(i));
	if (i->metric)
		put_u32(b, RTA_PRIORITY, i->metric);
	put_u32(b, RTA_TABLE, i->table);
	put_u32(b, RTA_OIF, i->link);
}

static uint32_t at_most_u32(uint64_t value)
{
	return value < 0xffffffffu ? value : 0xffffffffu;
}

static void shaper_put(struct np_batch_text *b, const struct np_pair_item *i, int index)
{
	struct tcmsg head = { .tcm_ifindex = index, .tcm_parent = TC_H_ROOT };
	/* rate · 25 / 1000 without overflow; the limit keeps the burst exactly (qdiscmsg.py) */
	uint64_t waiting = i->rate / 1000 * SHAPER_LATENCY + i->rate % 1000 * SHAPER_LATENCY / 1000;
	struct tc_tbf_qopt parms = {
		.rate = { .linklayer = TC_LINKLAYER_ETHERNET, .rate = at_most_u32(i->rate) },
		.limit = at_most_u32(i->burst + waiting),
	};
	struct rtattr *options;

	np_message_begin(b, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof(head));
	put_text(b, TCA_KIND, "tbf");
	options = nest(b, TCA_OPTIONS);
	put(b, TCA_TBF_PARMS, &parms, sizeof(parms));
	put_u32(b, TCA_TBF_BURST, i->burst);
	if (i->rate > parms.rate.rate)
		put(b, TCA_TBF_RATE64, &i->rate, sizeof(i->rate));
	nest_end(b, options);
}

/* index: of the pair's end that lies in the item's namespace. */
void np_message_item(struct np_batch_text *b, const struct np_pair_item *item, int index)
{
	static void (*const puts[])(struct np_batch_text *, const struct np_pair_item *, int) = {
		[NP_ITEM_ADDRESS] = address_put,
		[NP_ITEM_ROUTE] = route_put,
		[NP_ITEM_NEIGHBOUR] = neighbour_put,
		[NP_ITEM_SHAPER] = shaper_put,
	};

	puts[item->what](b, item, item->link ? (int)item->link : index);
}

/* A route or a neighbour on a link that is none of the pair's ends. */
void np_message_item_delete(struct np_batch_text *b, const struct np_pair_item *item)
{
	if (item->what == NP_ITEM_ROUTE)
		route_delete(b, item);
	else
		neighbour_delete(b, item);
}

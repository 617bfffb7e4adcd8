/* SPDX-License-Identifier: GPL-2.0 */
/* Learning, behind netfilter: what the kernel has just decided about a packet becomes its flow's entry.
 *
 * The packet itself says what it is now and by which device it leaves; the conntrack entry that
 * netfilter attached to it (skb->_nfct) says what it was when it arrived. Both are the kernel's own
 * words about this very packet, so there is nothing to look up and nothing to guess. (A program's
 * context is the struct sk_buff, which bpf_probe_read_kernel reads on every kernel from 5.8.)
 *
 * A packet is tagged when it arrives (skb->tc_index, which nothing else on its way uses): the place
 * it came from and the generation that was then. What changed in between is not learnt. */
#ifndef NP_LEARN_H
#define NP_LEARN_H

/* Before Linux 6.16 (BPF_F_IPV6) a rewrite of IPv6 breaks packets that come with a sum over the whole. */
extern int LINUX_KERNEL_VERSION __kconfig;
#define NP_CSUM_IPV6_SINCE ((6 << 16) + (16 << 8))
#define NP_CSUM_IPV6 (1 << 7)

#define NP_TAG_SHIFT 13
#define NP_TAG_MASK ((1 << NP_TAG_SHIFT) - 1)
#define NP_TAG_ENCAPSULATED 4 /* beyond enum np_place: the tunnel's device puts it into a tunnel */
#define NP_TAG_OUTER 5        /* a tunnel packet on its way in; the rest is its place in np_peers */

#define NP_CT_MASK 7 /* the lower bits of _nfct: enum ip_conntrack_info */
#define NP_CT_ESTABLISHED 0
#define NP_CT_ESTABLISHED_REPLY 3
#define NP_CT_WANTED (1 << 1 | 1 << 3)                      /* IPS_SEEN_REPLY, IPS_CONFIRMED */
#define NP_CT_REFUSED (1 << 6 | 1 << 9 | 1 << 10 | 1 << 13) /* IPS_SEQ_ADJUST, _DYING, _FIXED_TIMEOUT, _HELPER */
#define NP_CT_TCP_ESTABLISHED 3

/* The parts of the kernel's structs that are read, found by their names at load time (CO-RE). */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sk_buff {
	unsigned long _nfct;
};

struct nf_conntrack_tuple {
	__u8 unused;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct nf_conntrack_zone {
	__u16 id;
};

struct ip_ct_tcp {
	__u8 state;
};

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
};

struct nf_conn {
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	union nf_conntrack_proto proto;
};
#pragma clang attribute pop

/* struct nf_conntrack_tuple as every kernel since 2.6.20 has it. */
struct np_ct_tuple {
	__u8 source[16];
	__be16 source_port;
	__u16 family; /* AF_INET, AF_INET6 */
	__u8 destination[16];
	__be16 destination_port;
	__u8 protocol;
	__u8 direction;
};

static __always_inline __u16 np_tag(__u32 kind, __u32 rest)
{
	return kind << NP_TAG_SHIFT | (rest & NP_TAG_MASK);
}

static __always_inline __u32 np_tag_kind(struct __sk_buff *skb)
{
	return skb->tc_index >> NP_TAG_SHIFT & 7;
}

static __always_inline bool np_tag_fresh(struct __sk_buff *skb, const struct np_config *config)
{
	return (skb->tc_index & NP_TAG_MASK) == (config->generation & NP_TAG_MASK);
}

/* What this packet was when it arrived, when its flow is one to remember. */
static __always_inline bool np_ct_read(struct __sk_buff *skb, struct np_ct_tuple *tuple)
{
	unsigned long nfct = 0, status = 0;
	__u32 info;
	__u16 zone = 0;
	__u8 state = 0;
	struct nf_conn *ct;

	bpf_probe_read_kernel(&nfct, sizeof(nfct),
			      __builtin_preserve_access_index(&((struct sk_buff *)skb)->_nfct));
	info = nfct & NP_CT_MASK;
	ct = (struct nf_conn *)(nfct & ~(unsigned long)NP_CT_MASK);
	if (!ct || (info != NP_CT_ESTABLISHED && info != NP_CT_ESTABLISHED_REPLY))
		return false;
	bpf_core_read(&status, sizeof(status), &ct->status);
	if ((status & NP_CT_WANTED) != NP_CT_WANTED || status & NP_CT_REFUSED)
		return false;
	bpf_core_read(&zone, sizeof(zone), &ct->zone.id);
	if (info == NP_CT_ESTABLISHED)
		bpf_probe_read_kernel(tuple, sizeof(*tuple),
				      __builtin_preserve_access_index(&ct->tuplehash[0].tuple));
	else
		bpf_probe_read_kernel(tuple, sizeof(*tuple),
				      __builtin_preserve_access_index(&ct->tuplehash[1].tuple));
	if (tuple->protocol == IPPROTO_TCP) {
		bpf_core_read(&state, sizeof(state), &ct->proto.tcp.state);
		if (state != NP_CT_TCP_ESTABLISHED)
			return false;
	}
	return !zone;
}

/* Whether the first `words` 32-bit words differ. */
static __always_inline bool np_words_differ(const void *a, const void *b, int words)
{
	const __u32 *x = a, *y = b;
	__u32 differs = 0;

#pragma unroll
	for (int i = 0; i < words; i++)
		differs |= x[i] ^ y[i];
	return differs;
}

static __always_inline bool np_flow_same(const struct np_flow *a, const struct np_flow *b)
{
	return !np_words_differ(a, b, offsetof(struct np_flow, flags) / 4) && a->flags == b->flags &&
	       a->to == b->to;
}

static __always_inline void np_flow_store(const struct np_flow_key *key, struct np_flow *flow)
{
	struct np_flow *known = bpf_map_lookup_elem(&np_flows, key);

	if (known && np_flow_same(known, flow)) {
		if (flow->asked - known->asked > NP_ASK_NS || flow->size > known->size)
			known->size = flow->size;
		known->asked = flow->asked;
		return;
	}
	bpf_map_update_elem(&np_flows, key, flow, BPF_ANY);
}

/* Whether there is anything to learn from this packet: asked first, it is what most misses end with. */
static __always_inline bool np_learn_wanted(struct __sk_buff *skb, const struct np_config *config,
					    struct np_ct_tuple *tuple)
{
	if (np_tag_fresh(skb, config) && !(skb->mark & NP_MARK_KERNEL) && np_ct_read(skb, tuple))
		return true;
	np_verdict_count(NP_VERDICT_WAIT, skb->len);
	return false;
}

/* The way by which a packet leaves. */
struct np_way {
	__u32 ifindex;
	__u8 to;    /* enum np_place */
	__u8 flags; /* enum np_flow_flags */
};

/* Called where packets leave: remember what became of this one, which arrived as `tuple`. */
static __always_inline void np_learn(struct __sk_buff *skb, const struct np_config *config,
				     const struct np_ct_tuple *tuple, const struct np_way *way)
{
	struct np_flow_key key = {};
	struct np_flow flow = {};
	struct np_packet now;

	if (!np_parse_frame(skb, &now, 0) || tuple->protocol != now.key.protocol) {
		np_verdict_count(NP_VERDICT_WAIT, skb->len);
		return;
	}
	__builtin_memcpy(key.source, tuple->source, 16);
	__builtin_memcpy(key.destination, tuple->destination, 16);
	key.source_port = tuple->source_port;
	key.destination_port = tuple->destination_port;
	key.protocol = now.key.protocol;
	key.family = now.key.family;
	key.from = np_tag_kind(skb);
	__builtin_memcpy(&flow, &now.key, 36);
	if (bpf_skb_load_bytes(skb, 0, flow.ethernet, sizeof(flow.ethernet)))
		return;
	flow.ifindex = way->ifindex;
	flow.generation = config->generation;
	flow.to = way->to;
	flow.flags = way->flags;
	if (np_words_differ(&key, &flow, offsetof(struct np_flow, ethernet) / 4))
		flow.flags |= NP_FLOW_REWRITES;
	if (flow.flags & NP_FLOW_REWRITES && key.family == 6 && LINUX_KERNEL_VERSION < NP_CSUM_IPV6_SINCE)
		return;
	flow.size = now.size;
	flow.asked = flow.learnt = bpf_ktime_get_ns();
	np_flow_store(&key, &flow);
	np_verdict_count(NP_VERDICT_LEARNT, skb->len);
}

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/* A hit: rewrite the packet as the kernel did with this flow's last one, and send it the same way. */
#ifndef NP_FORWARD_H
#define NP_FORWARD_H

#define NP_PACKET_HOST 0
/* Of acknowledgements without data one in eight is learnt from: the third packet of a connection should
 * not pay for what may never be used, and a stream of them is soon known. */
#define NP_BARE_SAMPLE 7

/* NAT, as conntrack's tuples say. Both checksums follow incrementally, also where they are offloaded. */
static __always_inline int np_rewrite_tuple(struct __sk_buff *skb, const struct np_packet *packet,
					    const struct np_flow *flow)
{
	bool tcp = packet->key.protocol == IPPROTO_TCP;
	__u32 check = packet->transport + (tcp ? 16 : 6);
	__u64 zero = tcp ? 0 : BPF_F_MARK_MANGLED_0; /* UDP without a checksum stays so */
	__u32 before, after;
	__s64 diff;
	int err;

	__builtin_memcpy(&before, &packet->key.source_port, 4);
	__builtin_memcpy(&after, &flow->source_port, 4);
	diff = bpf_csum_diff((__be32 *)packet->key.source, 32, (__be32 *)flow->source, 32, 0);
	/* of IPv6 addresses and their checksum the sum over the packet stays the same (Linux 6.16) */
	err = bpf_l4_csum_replace(skb, check, 0, diff,
				  BPF_F_PSEUDO_HDR | zero | (packet->key.family == 6 ? NP_CSUM_IPV6 : 0));
	err = err ?: bpf_l4_csum_replace(skb, check, before, after, 4 | zero);
	err = err ?: bpf_skb_store_bytes(skb, packet->transport, &after, 4, 0);
	if (packet->key.family == 6)
		return err ?: bpf_skb_store_bytes(skb, packet->network + 8, flow->source, 32, 0);
	err = err ?: bpf_l3_csum_replace(skb, packet->network + 10, 0, diff, 0);
	err = err ?: bpf_skb_store_bytes(skb, packet->network + 12, flow->source, 4, 0);
	return err ?: bpf_skb_store_bytes(skb, packet->network + 16, flow->destination, 4, 0);
}

/* One hop less. IPv4's checksum makes up for it; IPv6 has none, so a sum over the packet must follow. */
static __always_inline int np_rewrite_hops(struct __sk_buff *skb, const struct np_packet *packet)
{
	__be16 before, after;

	if (packet->key.family == 4) {
		before = packet->ttl_word;
		after = bpf_htons(bpf_ntohs(before) - 0x100);
		if (bpf_l3_csum_replace(skb, packet->network + 10, before, after, 2))
			return -1;
		return bpf_skb_store_bytes(skb, packet->network + 8, &after, 2, 0);
	}
	after = bpf_htons(bpf_ntohs(packet->ttl_word) - 1);
	return bpf_skb_store_bytes(skb, packet->network + 6, &after, 2, BPF_F_RECOMPUTE_CSUM);
}

/* A flow that ends is forgotten in both directions: conntrack must see how. */
static __always_inline void np_flow_forget(const struct np_flow_key *key)
{
	struct np_flow *flow = bpf_map_lookup_elem(&np_flows, key);
	struct np_flow_key back = {};

	if (!flow)
		return;
	__builtin_memcpy(back.source, flow->destination, 16);
	__builtin_memcpy(back.destination, flow->source, 16);
	back.source_port = flow->destination_port;
	back.destination_port = flow->source_port;
	back.protocol = key->protocol;
	back.family = key->family;
	back.from = flow->to;
	bpf_map_delete_elem(&np_flows, &back);
	bpf_map_delete_elem(&np_flows, key);
}

/* The entry that this packet may use; NULL, with the reason counted, when the kernel must see it. */
static __always_inline struct np_flow *np_flow_find(struct __sk_buff *skb, const struct np_config *config,
						    struct np_packet *packet)
{
	struct np_flow *flow = bpf_map_lookup_elem(&np_flows, &packet->key);
	__u32 verdict;

	if (flow)
		packet->bare = 0;
	if (!flow)
		verdict = NP_VERDICT_MISS;
	else if (flow->generation != config->generation)
		verdict = NP_VERDICT_STALE;
	else if (bpf_ktime_get_ns() - flow->asked > NP_ASK_NS)
		verdict = NP_VERDICT_ASK;
	else if (packet->size > flow->size)
		verdict = NP_VERDICT_LARGE;
	else
		return flow;
	np_verdict_count(verdict, skb->len);
	return NULL;
}

static __always_inline void np_flow_count(struct np_flow *flow, struct np_port *port, __u64 bytes)
{
	__sync_fetch_and_add(&flow->packets, 1);
	__sync_fetch_and_add(&flow->bytes, bytes);
	np_verdict_count(NP_VERDICT_FAST, bytes);
	if (port)
		np_counter_add(&port->sent, bytes);
	if (flow->to != NP_POD)
		return;
	port = np_port_get(flow->ifindex);
	if (port)
		np_counter_add(&port->received, bytes);
}

/* The way that the flow's last packet went. */
static __always_inline int np_send(struct __sk_buff *skb, const struct np_config *config,
				   const struct np_packet *packet, const struct np_flow *flow)
{
	struct np_tunnel *tunnel = NULL;

	skb->tc_index = 0;
	if (flow->to == NP_TUNNEL)
		tunnel = np_tunnel_find(config, flow->ethernet, packet->size);
	if (tunnel) /* that fails for want of memory alone */
		return np_tunnel_push(skb, tunnel, packet->ecn) == TC_ACT_REDIRECT ? TC_ACT_REDIRECT : TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, 0, flow->ethernet, sizeof(flow->ethernet), 0))
		return TC_ACT_SHOT;
	if (!(flow->flags & NP_FLOW_PEER))
		return bpf_redirect(flow->ifindex, 0);
	bpf_skb_change_type(skb, NP_PACKET_HOST); /* before 6.14 the redirect leaves it as the host end saw it */
	return bpf_redirect_peer(flow->ifindex, 0);
}

/* A tunnel packet that we know nothing of, out of its tunnel and before the kernel's netfilter. */
static __always_inline int np_decapsulate(struct __sk_buff *skb, const struct np_config *config, __u8 family)
{
	__u8 ethernet[12];

	if (skb->gso_size || bpf_skb_load_bytes(skb, NP_OUTER_LEN, ethernet, sizeof(ethernet)) ||
	    !np_tunnel_pull(skb, family, ethernet))
		return TC_ACT_UNSPEC;
	np_verdict_count(NP_VERDICT_PULLED, skb->len);
	return bpf_redirect(config->tunnel, BPF_F_INGRESS);
}

/* An ordinary packet that the kernel is to decide about, to where that begins. */
static __always_inline int np_leave(struct __sk_buff *skb, const struct np_config *config,
				    const struct np_packet *packet, __u32 outer)
{
	struct np_port *port;

	if (outer)
		return np_decapsulate(skb, config, packet->key.family);
	port = packet->key.from == NP_POD ? np_port_get(skb->ifindex) : NULL;
	if (port && port->bridge)
		return bpf_redirect(port->bridge, BPF_F_INGRESS);
	return TC_ACT_UNSPEC;
}

/* The body of every "from" program. `outer`: bytes of a proven tunnel before the frame. */
static __always_inline int np_forward(struct __sk_buff *skb, const struct np_config *config, __u8 from, __u32 outer)
{
	struct np_packet packet;
	struct np_flow *flow;

	if (!np_parse_frame(skb, &packet, outer)) {
		np_verdict_count(NP_VERDICT_UNUSUAL, skb->len);
		return TC_ACT_UNSPEC;
	}
	packet.key.from = from;
	if ((packet.tcp_flags & ~(NP_TCP_ORDINARY & ~NP_TCP_ACK)) != NP_TCP_ACK) {
		if (packet.tcp_flags & NP_TCP_ENDS)
			np_flow_forget(&packet.key);
		np_verdict_count(NP_VERDICT_CONTROL, skb->len);
		return np_leave(skb, config, &packet, outer);
	}
	flow = np_flow_find(skb, config, &packet);
	if (!flow) {
		if (!outer && (!packet.bare || !(bpf_get_prandom_u32() & NP_BARE_SAMPLE)))
			skb->tc_index = np_tag(from, config->generation);
		return np_leave(skb, config, &packet, outer);
	}
	if (outer) {
		if (!np_tunnel_pull(skb, packet.key.family, flow->ethernet))
			return TC_ACT_UNSPEC;
		packet.network -= outer;
		packet.transport -= outer;
	}
	np_flow_count(flow, from == NP_POD ? np_port_get(skb->ifindex) : NULL, skb->len);
	if (flow->flags & NP_FLOW_REWRITES && np_rewrite_tuple(skb, &packet, flow))
		return TC_ACT_SHOT;
	if (np_rewrite_hops(skb, &packet))
		return TC_ACT_SHOT;
	return np_send(skb, config, &packet, flow);
}

/* Whatever the kernel sends into the tunnel: by the header that it made before, or tagged to learn it. */
static __always_inline int np_encapsulate(struct __sk_buff *skb, const struct np_config *config)
{
	__u32 len = skb->len;
	struct np_packet packet;
	struct np_tunnel *tunnel;
	__u8 mac[6];

	skb->tc_index = 0;
	if (!np_parse_frame(skb, &packet, 0) || bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)))
		return TC_ACT_UNSPEC;
	tunnel = np_tunnel_find(config, mac, packet.size);
	if (tunnel && np_tunnel_push(skb, tunnel, packet.ecn) == TC_ACT_REDIRECT) {
		np_verdict_count(NP_VERDICT_PUSHED, len);
		return TC_ACT_REDIRECT;
	}
	skb->tc_index = np_tag(NP_TAG_ENCAPSULATED, config->generation);
	return TC_ACT_UNSPEC;
}

#endif

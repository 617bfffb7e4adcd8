/* SPDX-License-Identifier: GPL-2.0 */
/* The tunnel's outer header, remembered per remote node: what the VXLAN device put around a frame is
 * put around the next one, and what the kernel let in from a node is taken out of its tunnel.
 * Outer IPv4 without a UDP checksum only; everything else goes through the device. */
#ifndef NP_TUNNEL_H
#define NP_TUNNEL_H

#define NP_OUTER_LEN 50 /* what is put before a frame's network header: IPv4, UDP, VXLAN, Ethernet */
#define NP_ECN_CE 3
#define NP_VXLAN_FLAGS 0x08
#define NP_PORT_LOW 32768 /* the source ports that the device draws from, too */
#define NP_PORT_SPAN (60999 - 32768)
#define NP_ADJ_ROOM_DECAP_IP6 (1 << 8) /* BPF_F_ADJ_ROOM_DECAP_L3_IPV6: Linux 6.3 */

struct np_vxlan {
	__u8 flags;
	__u8 reserved[3];
	__be32 vni; /* in the upper 24 bits */
};

struct np_outer {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	struct np_vxlan vxlan;
	struct ethhdr inner;
} __attribute__((packed));

_Static_assert(sizeof(struct np_outer) == NP_TEMPLATE_LEN, "the outer header");

/* Whether the outer headers are worth being brought in reach. */
static __always_inline bool np_may_be_tunnel(struct __sk_buff *skb, const struct np_config *config)
{
	void *data = (void *)(long)skb->data;
	struct udphdr *udp = data + NP_ETH_LEN + NP_IP4_LEN;

	return skb->protocol == bpf_htons(ETH_P_IP) && (void *)(udp + 1) <= (void *)(long)skb->data_end &&
	       udp->dest == config->vxlan_port;
}

/* The outer headers of a tunnel packet of ours (either way); NULL when it is none, or unusual. */
static __always_inline struct np_outer *np_parse_outer(struct __sk_buff *skb, const struct np_config *config)
{
	struct np_outer *outer = (void *)(long)skb->data;

	if ((void *)(outer + 1) > (void *)(long)skb->data_end || skb->vlan_present)
		return NULL;
	if (outer->ethernet.h_proto != bpf_htons(ETH_P_IP) || *(__u8 *)&outer->ip != 0x45 ||
	    outer->ip.protocol != IPPROTO_UDP || outer->udp.dest != config->vxlan_port)
		return NULL;
	if (outer->ip.frag_off & bpf_htons(0xbfff) || np_ip4_sum(&outer->ip) != 0xffff || outer->udp.check)
		return NULL;
	if (bpf_ntohs(outer->ip.tot_len) + NP_ETH_LEN != skb->len ||
	    bpf_ntohs(outer->udp.len) + NP_IP4_LEN + NP_ETH_LEN != skb->len)
		return NULL;
	if (outer->vxlan.flags != NP_VXLAN_FLAGS || outer->vxlan.vni != bpf_htonl(config->vni << 8))
		return NULL;
	return outer;
}

/* On the wire, behind the device: remember the header that it made. */
static __always_inline void np_tunnel_learn(struct __sk_buff *skb, const struct np_config *config)
{
	struct np_outer *outer = np_parse_outer(skb, config);
	struct np_tunnel tunnel = {}, *known;
	struct np_outer *made = (void *)tunnel.header;
	struct np_packet inner;
	__u64 key;

	if (!outer || !np_tag_fresh(skb, config))
		return;
	__builtin_memcpy(made, outer, sizeof(*made));
	if (!np_parse_frame(skb, &inner, NP_OUTER_LEN))
		return;
	made->ip.tot_len = made->ip.id = made->ip.check = 0;
	made->ip.tos &= ~3;
	made->udp.source = made->udp.len = 0;
	tunnel.sum = np_ip4_sum(&made->ip);
	tunnel.ifindex = skb->ifindex;
	tunnel.generation = config->generation;
	tunnel.asked = bpf_ktime_get_ns();
	tunnel.size = inner.size + NP_OUTER_LEN;
	key = np_mac_key(made->inner.h_dest);
	known = bpf_map_lookup_elem(&np_tunnels, &key);
	if (known && known->generation == tunnel.generation && tunnel.asked - known->asked < NP_ASK_NS &&
	    known->size > tunnel.size)
		tunnel.size = known->size;
	bpf_map_update_elem(&np_tunnels, &key, &tunnel, BPF_ANY);
}

/* What is remembered of the node that has this MAC, when it may be used for this packet. */
static __always_inline struct np_tunnel *np_tunnel_find(const struct np_config *config, const __u8 *mac, __u32 size)
{
	__u64 key = np_mac_key(mac);
	struct np_tunnel *tunnel = bpf_map_lookup_elem(&np_tunnels, &key);

	if (!tunnel || tunnel->generation != config->generation || size + NP_OUTER_LEN > tunnel->size ||
	    bpf_ktime_get_ns() - tunnel->asked > NP_ASK_NS)
		return NULL;
	return tunnel;
}

/* As udp_flow_src_port (include/net/udp.h): the same port that the device would choose. */
static __always_inline __be16 np_tunnel_port(struct __sk_buff *skb)
{
	__u32 hash = bpf_get_hash_recalc(skb);

	hash ^= hash << 16;
	return bpf_htons((((__u64)hash * NP_PORT_SPAN) >> 32) + NP_PORT_LOW);
}

/* The frame into the tunnel and to the wire; `ecn`: the inner packet's. */
static __always_inline int np_tunnel_push(struct __sk_buff *skb, const struct np_tunnel *tunnel, __u8 ecn)
{
	const __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
			    BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(NP_ETH_LEN) |
			    BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
	struct np_outer outer;
	__u32 len = skb->len + NP_OUTER_LEN - NP_ETH_LEN, sum;

	if (len > 0xffff)
		return -1;
	__builtin_memcpy(&outer, tunnel->header, sizeof(outer));
	outer.inner.h_proto = skb->protocol;
	outer.ip.tos |= ecn == NP_ECN_CE ? 2 : ecn; /* RFC 6040 in compatibility mode, as the device does */
	outer.ip.tot_len = bpf_htons(len);
	outer.ip.id = bpf_get_prandom_u32();
	outer.udp.source = np_tunnel_port(skb);
	outer.udp.len = bpf_htons(len - NP_IP4_LEN);
	sum = tunnel->sum + outer.ip.tot_len + outer.ip.id + bpf_htons(outer.ip.tos & 3);
	sum = (sum & 0xffff) + (sum >> 16);
	outer.ip.check = ~((sum & 0xffff) + (sum >> 16));
	if (bpf_skb_adjust_room(skb, NP_OUTER_LEN, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	bpf_skb_store_bytes(skb, 0, &outer, sizeof(outer), 0);
	skb->tc_index = 0;
	return bpf_redirect(tunnel->ifindex, 0);
}

/* The place of a remote node in np_peers. */
static __always_inline __u32 np_peer_place(__be32 source)
{
	return (source * 0x9e3779b1u) >> 20; /* 12 bits: NP_PEERS_MAX */
}

/* Whether the kernel has let tunnel packets of this node in during the last second. */
static __always_inline bool np_peer_proven(struct __sk_buff *skb, __be32 source, __be32 destination)
{
	__u32 place = np_peer_place(source);
	struct np_peer *peer = bpf_map_lookup_elem(&np_peers, &place);
	__u64 now = bpf_ktime_get_ns();

	if (!peer)
		return false;
	if (peer->source == source && peer->destination == destination) {
		if (now - peer->proven < NP_ASK_NS)
			return true;
	} else if (now - peer->touched < NP_ASK_NS) {
		return false; /* another node has the place: this one's packets all take the kernel path */
	} else {
		peer->source = source;
		peer->destination = destination;
		peer->proven = 0;
	}
	peer->touched = now;
	skb->tc_index = np_tag(NP_TAG_OUTER, place);
	return false;
}

/* Behind the device: the kernel has let the node in that has this place. */
static __always_inline void np_peer_prove(__u32 place)
{
	struct np_peer *peer = bpf_map_lookup_elem(&np_peers, &place);

	if (peer)
		peer->proven = bpf_ktime_get_ns();
}

/* The frame out of the tunnel, with the MACs given. False: the packet is as it was. */
static __always_inline bool np_tunnel_pull(struct __sk_buff *skb, __u8 family, const __u8 *ethernet)
{
	__be16 protocol = family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | (family == 4 ? 0 : NP_ADJ_ROOM_DECAP_IP6);

	if (bpf_skb_adjust_room(skb, -NP_OUTER_LEN, BPF_ADJ_ROOM_MAC, flags))
		return false;
	bpf_skb_store_bytes(skb, 0, ethernet, 12, 0);
	bpf_skb_store_bytes(skb, 12, &protocol, 2, 0);
	return true;
}

#endif

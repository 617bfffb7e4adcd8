/* SPDX-License-Identifier: GPL-2.0 */
/* Packets into flow keys. Whatever is not plain TCP or UDP, whole, with hops left, is refused: the
 * kernel path knows what to do with it. */
#ifndef NP_PARSE_H
#define NP_PARSE_H

#define NP_ETH_LEN 14
#define NP_IP4_LEN 20
#define NP_IP6_LEN 40
#define NP_TCP_LEN 20
#define NP_UDP_LEN 8
#define NP_TCP_ORDINARY 0xd8 /* CWR, ECE, ACK, PSH: what neither opens nor closes a flow */
#define NP_TCP_ACK 0x10
#define NP_TCP_ENDS 0x05 /* FIN, RST */

struct np_packet {
	struct np_flow_key key;
	__u32 network; /* offset of the IP header */
	__u32 transport;
	__u32 size;     /* of the largest IP packet that this is, or will be cut into */
	__u16 ttl_word; /* TTL and protocol (IPv4), next header and hop limit (IPv6), as in the packet */
	__u16 sum;      /* IPv4's header checksum */
	__u8 ecn;
	__u8 tcp_flags; /* of TCP; for UDP just ACK */
	__u8 bare;      /* an acknowledgement without data, of a flow that is not known */
};

/* The folded sum of an IPv4 header without options; 0xffff when its checksum is right. */
static __always_inline __u32 np_ip4_sum(const void *header)
{
	const __u16 *word = header;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < NP_IP4_LEN / 2; i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline bool np_parse_transport(struct __sk_buff *skb, struct np_packet *packet, __u32 end)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	__u32 offset = packet->transport, header = NP_UDP_LEN;

	if (packet->key.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = data + offset;

		if ((void *)(tcp + 1) > data_end)
			return false;
		header = tcp->doff * 4;
		if (header < NP_TCP_LEN || offset + header > end)
			return false;
		packet->key.source_port = tcp->source;
		packet->key.destination_port = tcp->dest;
		packet->tcp_flags = ((__u8 *)tcp)[13];
		packet->bare = offset + header == end;
	} else if (packet->key.protocol == IPPROTO_UDP) {
		struct udphdr *udp = data + offset;

		if ((void *)(udp + 1) > data_end)
			return false;
		if (!skb->gso_size && bpf_ntohs(udp->len) != end - offset)
			return false;
		packet->key.source_port = udp->source;
		packet->key.destination_port = udp->dest;
		packet->tcp_flags = NP_TCP_ACK;
	} else {
		return false;
	}
	packet->size = skb->gso_size ? offset + header - packet->network + skb->gso_size : end - packet->network;
	return true;
}

static __always_inline bool np_parse_ip4(struct __sk_buff *skb, struct np_packet *packet)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + packet->network;

	if ((void *)(ip + 1) > data_end || *(__u8 *)ip != 0x45 || ip->ttl <= 1)
		return false;
	if (ip->frag_off & bpf_htons(0xbfff) || np_ip4_sum(ip) != 0xffff) /* all but "don't fragment" */
		return false;
	if (packet->network + bpf_ntohs(ip->tot_len) != skb->len)
		return false;
	__builtin_memcpy(packet->key.source, &ip->saddr, 4);
	__builtin_memcpy(packet->key.destination, &ip->daddr, 4);
	packet->key.protocol = ip->protocol;
	packet->key.family = 4;
	packet->ttl_word = *(__u16 *)&ip->ttl;
	packet->sum = ip->check;
	packet->ecn = ip->tos & 3;
	packet->transport = packet->network + NP_IP4_LEN;
	return np_parse_transport(skb, packet, skb->len);
}

static __always_inline bool np_parse_ip6(struct __sk_buff *skb, struct np_packet *packet)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + packet->network;

	if ((void *)(ip + 1) > data_end || ip->version != 6 || ip->hop_limit <= 1)
		return false;
	if (packet->network + NP_IP6_LEN + bpf_ntohs(ip->payload_len) != skb->len)
		return false;
	__builtin_memcpy(packet->key.source, &ip->saddr, 16);
	__builtin_memcpy(packet->key.destination, &ip->daddr, 16);
	packet->key.protocol = ip->nexthdr;
	packet->key.family = 6;
	packet->ttl_word = *(__u16 *)&ip->nexthdr;
	packet->ecn = ip->flow_lbl[0] >> 4 & 3;
	packet->transport = packet->network + NP_IP6_LEN;
	return np_parse_transport(skb, packet, skb->len);
}

/* The frame at `offset` from the start: false for what the kernel path must see. */
static __always_inline bool np_parse_frame(struct __sk_buff *skb, struct np_packet *packet, __u32 offset)
{
	void *data = (void *)(long)skb->data;
	struct ethhdr *ethernet = data + offset;

	__builtin_memset(packet, 0, sizeof(*packet));
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end || skb->len > 0xffff || skb->vlan_present)
		return false;
	packet->network = offset + NP_ETH_LEN;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		return np_parse_ip4(skb, packet);
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		return np_parse_ip6(skb, packet);
	return false;
}

/* Headers of up to `len` bytes in reach of direct access; shorter packets as far as they go. */
static __always_inline void np_pull(struct __sk_buff *skb, __u32 len)
{
	if (skb->data + len > skb->data_end && skb->len > skb->data_end - skb->data)
		bpf_skb_pull_data(skb, len < skb->len ? len : skb->len);
}

/* The frame's headers and no byte more: what is pulled out of a page leaves the rest of its data at an odd
 * address, and whoever copies it pays. */
static __always_inline void np_pull_frame(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		np_pull(skb, NP_ETH_LEN + NP_IP6_LEN + NP_TCP_LEN);
	else
		np_pull(skb, NP_ETH_LEN + NP_IP4_LEN + NP_TCP_LEN);
}

static __always_inline bool np_mac_is(struct __sk_buff *skb, __u32 offset, const __u8 *mac)
{
	void *data = (void *)(long)skb->data;
	__u16 *found = data + offset;
	const __u16 *wanted = (const __u16 *)mac;

	if ((void *)(found + 3) > (void *)(long)skb->data_end)
		return false;
	return found[0] == wanted[0] && found[1] == wanted[1] && found[2] == wanted[2];
}

#endif

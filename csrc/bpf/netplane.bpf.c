// SPDX-License-Identifier: GPL-2.0
/* The packet path: it repeats what the kernel path has decided for a flow, and decides nothing.
 *
 *   np_from_pod     ingress of a pod's veth      np_to_bridge   egress of a bridge whose ports pods are
 *   np_from_tunnel  ingress of the VXLAN device  np_to_tunnel   egress of the VXLAN device
 *   np_from_wire    ingress of the uplink        np_to_wire     egress of the uplink
 *
 * "from" programs look the flow up: a hit is rewritten and redirected, anything else is tagged and
 * left to the kernel. "to" programs see what the kernel made of tagged packets, and remember it.
 *
 * Between a pod's port and the bridge's device there is nothing to decide: which port has which MAC is
 * the agent's own doing. So an ordinary packet that the kernel is to route goes on as received by the
 * bridge's device, and what it has routed to a pod goes to the pod's port, past the switching. */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "netplane.h"

#include "maps.h"
#include "parse.h"

#include "learn.h"
#include "tunnel.h"

#include "forward.h"

SEC("tc")
int np_from_pod(struct __sk_buff *skb)
{
	struct np_config *config = np_config_get();

	skb->tc_index = 0; /* whatever the pod may have written there */
	if (!config)
		return TC_ACT_UNSPEC;
	np_pull_frame(skb);
	if (!np_mac_is(skb, 0, config->gateway_mac)) /* bridged, not routed */
		return TC_ACT_UNSPEC;
	return np_forward(skb, config, NP_POD, 0);
}

SEC("tc")
int np_from_tunnel(struct __sk_buff *skb)
{
	struct np_config *config = np_config_get();

	if (!config)
		return TC_ACT_UNSPEC;
	if (np_tag_kind(skb) == NP_TAG_OUTER)
		np_peer_prove(skb->tc_index & NP_TAG_MASK);
	skb->tc_index = 0;
	if (skb->pkt_type != NP_PACKET_HOST)
		return TC_ACT_UNSPEC;
	np_pull_frame(skb);
	return np_forward(skb, config, NP_TUNNEL, 0);
}

SEC("tc")
int np_from_wire(struct __sk_buff *skb)
{
	struct np_config *config = np_config_get();
	struct np_outer *outer;
	bool v6;

	skb->tc_index = 0;
	if (!config || skb->pkt_type != NP_PACKET_HOST)
		return TC_ACT_UNSPEC;
	np_pull_frame(skb);
	if (np_may_be_tunnel(skb, config))
		np_pull(skb, NP_TEMPLATE_LEN);
	outer = np_parse_outer(skb, config);
	if (!outer)
		return np_forward(skb, config, NP_WIRE, 0);
	if ((outer->ip.tos & 3) == NP_ECN_CE || !np_mac_is(skb, NP_OUTER_LEN, config->tunnel_mac))
		return TC_ACT_UNSPEC;
	v6 = outer->inner.h_proto == bpf_htons(ETH_P_IPV6);
	if (!np_peer_proven(skb, outer->ip.saddr, outer->ip.daddr))
		return TC_ACT_UNSPEC;
	if (v6)
		np_pull(skb, NP_TEMPLATE_LEN + NP_IP6_LEN + NP_TCP_LEN);
	else
		np_pull(skb, NP_TEMPLATE_LEN + NP_IP4_LEN + NP_TCP_LEN);
	return np_forward(skb, config, NP_TUNNEL, NP_OUTER_LEN);
}

SEC("tc")
int np_to_bridge(struct __sk_buff *skb)
{
	struct np_config *config = np_config_get();
	__u32 kind = np_tag_kind(skb), *ifindex;
	struct np_way way = { .to = NP_POD };
	struct np_ct_tuple tuple = {};
	struct ethhdr *ethernet = (void *)(long)skb->data;
	struct np_port *port;
	__u64 key;

	if (!config || (void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	key = np_mac_key(ethernet->h_dest);
	ifindex = bpf_map_lookup_elem(&np_pods, &key);
	if (!ifindex)
		return TC_ACT_UNSPEC;
	way.ifindex = *ifindex;
	if (kind >= NP_POD && kind <= NP_WIRE && np_learn_wanted(skb, config, &tuple)) {
		port = np_port_get(way.ifindex);
		way.flags = port && !(port->flags & NP_PORT_SHAPED) ? NP_FLOW_PEER : 0;
		np_pull_frame(skb);
		np_learn(skb, config, &tuple, &way);
	}
	return bpf_redirect(way.ifindex, 0);
}

SEC("tc")
int np_to_tunnel(struct __sk_buff *skb)
{
	struct np_config *config = np_config_get();
	struct np_way way = { .ifindex = skb->ifindex, .to = NP_TUNNEL };
	struct np_ct_tuple tuple = {};
	__u32 kind = np_tag_kind(skb);

	if (!config)
		return TC_ACT_UNSPEC;
	np_pull_frame(skb);
	if (kind >= NP_POD && kind <= NP_WIRE && np_learn_wanted(skb, config, &tuple))
		np_learn(skb, config, &tuple, &way);
	return np_encapsulate(skb, config);
}

SEC("tc")
int np_to_wire(struct __sk_buff *skb)
{
	struct np_config *config = np_config_get();
	struct np_way way = { .ifindex = skb->ifindex, .to = NP_WIRE };
	struct np_ct_tuple tuple = {};
	__u32 kind = np_tag_kind(skb);

	if (!kind || !config)
		return TC_ACT_UNSPEC;
	np_pull(skb, NP_TEMPLATE_LEN + NP_IP6_LEN + NP_TCP_LEN);
	if (kind == NP_TAG_ENCAPSULATED)
		np_tunnel_learn(skb, config);
	else if (kind <= NP_WIRE && np_learn_wanted(skb, config, &tuple))
		np_learn(skb, config, &tuple, &way);
	return TC_ACT_UNSPEC;
}

char np_license[] SEC("license") = "GPL";

/* The ABI between BPF, C and Python: the layouts of the shared maps and nothing else.
 * Every struct here is packed by hand, has no padding, and is checked by tests/bpf. Addresses are as
 * conntrack keeps them: IPv4 in the first four bytes, the rest zero. Times are ns since boot. */
#ifndef NETPLANE_H
#define NETPLANE_H

#include <linux/types.h>

#define NP_ABI_VERSION 4
#define NP_FLOWS_MAX 32768
#define NP_PORTS_MAX 4096
#define NP_TUNNELS_MAX 1024
#define NP_PEERS_MAX 4096
#define NP_MARK_KERNEL 0x20000 /* a mark's bit: somebody looks at every packet of this flow; not to be learnt */
#define NP_ASK_NS 1000000000 /* an entry asks the kernel again after this long */
#define NP_TEMPLATE_LEN 64   /* Ethernet, IPv4, UDP, VXLAN, inner Ethernet */

/* Where a packet came from, and where it goes. */
enum np_place {
	NP_NOWHERE = 0,
	NP_POD = 1,
	NP_TUNNEL = 2,
	NP_WIRE = 3,
};

/* What became of a packet; each is counted per CPU. */
enum np_verdict {
	NP_VERDICT_FAST = 0,    /* remembered, and carried by us to its end */
	NP_VERDICT_MISS = 1,    /* nothing is remembered of it */
	NP_VERDICT_ASK = 2,     /* remembered for a second: the kernel is asked again */
	NP_VERDICT_STALE = 3,   /* something that it rests on has changed */
	NP_VERDICT_LARGE = 4,   /* larger than any that the kernel let pass */
	NP_VERDICT_CONTROL = 5, /* it opens or closes its flow */
	NP_VERDICT_UNUSUAL = 6, /* options, fragments, no TCP or UDP, its last hop, not whole */
	NP_VERDICT_LEARNT = 7,  /* seen behind netfilter, and remembered */
	NP_VERDICT_WAIT = 8,    /* seen behind netfilter, and not to be remembered (yet) */
	NP_VERDICT_PUSHED = 9,  /* decided by the kernel, put into the tunnel by us */
	NP_VERDICT_PULLED = 10, /* taken out of the tunnel by us, decided by the kernel */
	NP_VERDICT_MAX = 11,
};

enum np_port_flags {
	NP_PORT_BARRED = 1, /* a guard or limit sits at its ingress: no program of ours before it */
	NP_PORT_SHAPED = 2, /* a queue sits at its root: go through the device, not around it */
};

enum np_flow_flags {
	NP_FLOW_REWRITES = 1, /* addresses or ports change */
	NP_FLOW_PEER = 2,     /* straight to the other end of the veth */
};

struct np_counter {
	__u64 packets;
	__u64 bytes;
};

/* The only element of np_config. Whoever changes what flows rest on counts `generation` up. */
struct np_config {
	__u32 generation;
	__u32 tunnel; /* ifindex of the VXLAN device, 0: none */
	__u32 vni;
	__be16 vxlan_port;
	__u8 tunnel_mac[6];
	__u8 gateway_mac[6];
	__u8 enabled; /* 0: every packet takes the kernel path */
	__u8 unused;
};

/* A flow as it arrives. */
struct np_flow_key {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 family; /* 4 or 6 */
	__u8 from;   /* enum np_place */
	__u8 unused;
};

/* The same flow as the kernel sent it on. The first 36 bytes are laid out as the key's. */
struct np_flow {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
	__u8 ethernet[12]; /* destination and source MAC */
	__u32 ifindex;
	__u32 generation;
	__u8 flags; /* enum np_flow_flags */
	__u8 to;    /* enum np_place */
	__u16 size; /* the largest IP packet that the kernel let pass */
	__u32 unused;
	__u64 asked;  /* when the kernel last answered */
	__u64 learnt; /* when this decision was first seen */
	__u64 packets;
	__u64 bytes;
};

/* What the VXLAN device put around a frame to one remote node (key: its MAC, two zero bytes). */
struct np_tunnel {
	__u8 header[NP_TEMPLATE_LEN]; /* lengths, identification, ECN, checksum and source port zero */
	__u32 ifindex;
	__u32 generation;
	__u32 sum;  /* of the template's IPv4 header */
	__u32 size; /* the largest outer IP packet that the kernel sent whole */
	__u64 asked;
};

/* A remote node whose tunnel packets the kernel lets in, by a hash of its address. */
struct np_peer {
	__be32 source;
	__be32 destination;
	__u64 touched; /* when it got this place; another may take it a second later */
	__u64 proven;  /* when the kernel last let one in */
};

/* Fast traffic of a port: what its pod sent, and what was sent to it (per CPU). */
struct np_port {
	__u32 flags;  /* enum np_port_flags */
	__u32 bridge; /* ifindex of the bridge that it is a port of, 0: none */
	struct np_counter sent;
	struct np_counter received;
};

#endif

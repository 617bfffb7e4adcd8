/* SPDX-License-Identifier: GPL-2.0 */
/* The maps, and the few things that every program asks of them. */
#ifndef NP_MAPS_H
#define NP_MAPS_H

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct np_config);
} np_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NP_FLOWS_MAX);
	__type(key, struct np_flow_key);
	__type(value, struct np_flow);
} np_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NP_TUNNELS_MAX);
	__type(key, __u64);
	__type(value, struct np_tunnel);
} np_tunnels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NP_PEERS_MAX);
	__type(key, __u32);
	__type(value, struct np_peer);
} np_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, NP_PORTS_MAX);
	__type(key, __u32);
	__type(value, struct np_port);
} np_ports SEC(".maps");

/* The port of every pod of the bridge, by the pod's MAC and two zero bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, NP_PORTS_MAX);
	__type(key, __u64);
	__type(value, __u32);
} np_pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NP_VERDICT_MAX);
	__type(key, __u32);
	__type(value, struct np_counter);
} np_counters SEC(".maps");

static __always_inline void np_counter_add(struct np_counter *counter, __u64 bytes)
{
	counter->packets++;
	counter->bytes += bytes;
}

static __always_inline void np_verdict_count(__u32 verdict, __u64 bytes)
{
	struct np_counter *counter = bpf_map_lookup_elem(&np_counters, &verdict);

	if (counter)
		np_counter_add(counter, bytes);
}

static __always_inline struct np_port *np_port_get(__u32 ifindex)
{
	return bpf_map_lookup_elem(&np_ports, &ifindex);
}

/* A MAC as maps have it for a key. */
static __always_inline __u64 np_mac_key(const __u8 *mac)
{
	__u64 key = 0;

	__builtin_memcpy(&key, mac, 6);
	return key;
}

/* The configuration, or NULL when the fast path is switched off. */
static __always_inline struct np_config *np_config_get(void)
{
	__u32 zero = 0;
	struct np_config *config = bpf_map_lookup_elem(&np_config, &zero);

	return config && config->enabled ? config : NULL;
}

#endif

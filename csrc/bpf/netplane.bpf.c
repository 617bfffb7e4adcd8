// SPDX-License-Identifier: GPL-2.0
/* The packet path. For now it counts what it leaves to the kernel: the frame that the fast path
 * grows into (one body per direction, verdicts counted, ABI in csrc/include). */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "netplane.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NP_VERDICT_MAX);
	__type(key, __u32);
	__type(value, struct np_counter);
} np_counters SEC(".maps");

static __always_inline void np_counter_add(__u32 verdict, __u64 bytes)
{
	struct np_counter *counter = bpf_map_lookup_elem(&np_counters, &verdict);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += bytes;
}

SEC("tc")
int np_ingress(struct __sk_buff *skb)
{
	np_counter_add(NP_VERDICT_PASS, skb->len);
	return TC_ACT_UNSPEC;
}

char np_license[] SEC("license") = "GPL";

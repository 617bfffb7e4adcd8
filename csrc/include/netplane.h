/* The ABI between BPF, C and Python: the layouts of the shared maps and nothing else.
 * Every struct here is packed by hand, has no padding, and is checked by tests/bpf. */
#ifndef NETPLANE_H
#define NETPLANE_H

#define NP_ABI_VERSION 1

/* Per-CPU counters of the packet path, by verdict. */
enum np_verdict {
	NP_VERDICT_PASS = 0, /* left to the kernel */
	NP_VERDICT_FAST = 1, /* handled by the packet path */
	NP_VERDICT_DROP = 2,
	NP_VERDICT_MAX = 3,
};

struct np_counter {
	unsigned long long packets;
	unsigned long long bytes;
};

#endif

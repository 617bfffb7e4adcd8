#ifndef NP_PAIR_H
#define NP_PAIR_H
/* A fresh veth pair and what hangs on it, as netplane/kernel/linkpair.py packs it: one struct np_pair, then
 * any number of struct np_pair_item up to NP_PAIR_ITEMS. */
#include <stdint.h>

#define NP_PAIR_ITEMS 48
#define NP_PAIR_PORTS 8

enum { NP_PAIR_MAC = 1, NP_PAIR_PEER_MAC = 2, NP_PAIR_CLSACT = 4, NP_PAIR_LOOPBACK = 8 };
enum { NP_ITEM_ADDRESS, NP_ITEM_ROUTE, NP_ITEM_NEIGHBOUR, NP_ITEM_SHAPER };
enum { NP_ROUTE_VIA = 1, NP_ROUTE_SRC = 2, NP_ROUTE_ONLINK = 4 };

struct np_pair {
	char name[16], peer[16]; /* ours and the pod's end, each ended by NUL */
	uint8_t mac[6], peer_mac[6];
	uint8_t flags, ports;
	struct {
		uint8_t attribute, value; /* IFLA_BRPORT_… */
	} port[NP_PAIR_PORTS];
	uint8_t pad[2];
	uint32_t mtu, peer_mtu, master; /* 0: none */
	char alias[256];
	uint32_t number; /* that our namespace is to have for the pod's; 0: the kernel's choice (nsnumbers.py) */
};

struct np_pair_item {
	uint8_t what, inside; /* inside: in the pod's namespace */
	uint8_t family, bits, scope, kind, flags, pad;
	uint32_t link; /* an index; 0: the pair's end that lies there */
	uint32_t table, metric, mtu, advmss;
	uint32_t burst;
	uint64_t rate; /* bytes per second */
	uint8_t mac[6], pad3[2];
	uint8_t dst[16], via[16], src[16];
};

_Static_assert(sizeof(struct np_pair) == 336, "linkpair.py packs it so");
_Static_assert(sizeof(struct np_pair_item) == 96, "linkpair.py packs it so");

/* Requests for one socket, of which only the last is acknowledged: a refusal speaks for itself. */
struct np_batch_text {
	int used, full;            /* full: something had no room */
	unsigned int first, count; /* numbers first … first + count - 1 */
	struct nlmsghdr *last;     /* the request that is being written */
	uint64_t refused;          /* by place in the batch */
	char buf[12288] __attribute__((aligned(4)));
};

void np_message_begin(struct np_batch_text *b, int type, int flags, const void *head, int size);
void np_message_number(struct np_batch_text *b, uint32_t number, int netns);
void np_message_link_create(struct np_batch_text *b, const struct np_pair *p, int peer_ns);
void np_message_link_finish(struct np_batch_text *b, const struct np_pair *p, int index);
void np_message_link_get(struct np_batch_text *b, int index, const char *name);
void np_message_link_up(struct np_batch_text *b, int index, const char *name);
void np_message_link_delete(struct np_batch_text *b, int index, const char *name);
void np_message_clsact(struct np_batch_text *b, int index);
void np_message_multicast_delete(struct np_batch_text *b, int index);
void np_message_item(struct np_batch_text *b, const struct np_pair_item *item, int index);
void np_message_item_delete(struct np_batch_text *b, const struct np_pair_item *item);
#endif

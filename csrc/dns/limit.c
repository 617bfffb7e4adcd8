/* Response-rate limit: how many answers a second a client's network gets over UDP, whose source
 * anybody can forge. A fixed table of theoretical arrival times (GCRA, ITU-T I.371), without locks.
 *
 * A network is a /24 or a /56. Each has a set of WAYS slots; the one that was idle longest goes when
 * another network comes. A slot is one word: 20 bits of hash, 44 bits of time in microseconds.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "dns.h"

enum { SETS = 16384, WAYS = 4 };
#define TIME ((1ull << 44) - 1)

struct np_limit {
	uint64_t key[2];
	uint64_t interval, burst; /* microseconds */
	unsigned int slip;
	_Atomic unsigned int limited;
	_Atomic uint64_t slot[SETS][WAYS];
};

/* burst: answers that may come at once. slip: every such one over the limit gets TC; 0: none. */
struct np_limit *np_limit_new(double per_second, double burst, int slip)
{
	struct np_limit *l;

	if (!(per_second > 0 && per_second <= 1e6 && burst >= 1 && burst <= 1e6 && slip >= 0))
		return NULL;
	l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	if (getrandom(l->key, sizeof(l->key), 0) != sizeof(l->key)) {
		free(l);
		return NULL;
	}
	l->interval = (uint64_t)(1e6 / per_second);
	l->burst = (uint64_t)(burst * 1e6 / per_second);
	l->slip = (unsigned int)slip;
	return l;
}

void np_limit_free(struct np_limit *l)
{
	free(l);
}

/* 0: answer; 1: with TC and nothing else; -EBUSY: silence. now: nanoseconds, of any steady clock. */
int np_limit_take(struct np_limit *l, const uint8_t *address, int family, uint64_t now)
{
	uint64_t hash = np_hash(l->key, address, family == AF_INET6 ? 7 : 3);
	_Atomic uint64_t *set = l->slot[hash % SETS], *mine = NULL, *idle = set;
	uint64_t tag = hash >> 44 << 44, ahead, seen;

	now = (now / 1000) & TIME;
	for (int i = 0; i < WAYS; i++) {
		seen = atomic_load_explicit(&set[i], memory_order_relaxed);
		if ((seen & ~TIME) == tag)
			mine = &set[i];
		if ((seen & TIME) < (atomic_load_explicit(idle, memory_order_relaxed) & TIME))
			idle = &set[i];
	}
	if (!mine)
		mine = idle;
	seen = atomic_load_explicit(mine, memory_order_relaxed);
	ahead = (seen & ~TIME) == tag ? (seen - now) & TIME : 0; /* of now, in a clock that begins anew */
	if (ahead > l->burst)
		ahead = 0; /* it is behind */
	if (ahead + l->interval <= l->burst) {
		/* A thread that was faster makes this one answer too much: that is no harm. */
		atomic_store_explicit(mine, tag | ((now + ahead + l->interval) & TIME), memory_order_relaxed);
		return 0;
	}
	if (l->slip && atomic_fetch_add_explicit(&l->limited, 1, memory_order_relaxed) % l->slip == 0)
		return 1;
	return -EBUSY;
}

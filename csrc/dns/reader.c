/* When may memory go that readers might still see? Epochs (quiescent-state RCU).
 *
 * A reader publishes the epoch that it began its batch in, and 0 while it waits for packets. The
 * writer unlinks, raises the epoch, and waits until every reader is at 0 or has begun since: none of
 * them can hold what was unlinked. Both sides have a full fence between their write and their reads,
 * so a reader that the writer saw at 0 will see what the writer unlinked.
 */
#include <time.h>

#include "dns.h"

/* A slot for one thread; NULL when all are taken. */
struct np_reader *np_reader_join(struct np_readers *all)
{
	for (int i = 0; i < NP_READERS; i++) {
		int no = 0;

		if (atomic_compare_exchange_strong(&all->reader[i].taken, &no, 1))
			return &all->reader[i];
	}
	return NULL;
}

void np_reader_leave(struct np_reader *r)
{
	np_reader_offline(r);
	atomic_store(&r->taken, 0);
}

/* From here on the reader may look; whatever it held from before it holds no more. */
void np_reader_online(struct np_readers *all, struct np_reader *r)
{
	atomic_store(&r->epoch, atomic_load(&all->epoch));
	atomic_thread_fence(memory_order_seq_cst);
}

void np_reader_offline(struct np_reader *r)
{
	atomic_store_explicit(&r->epoch, 0, memory_order_release);
}

/* Return when no reader holds what was unlinked before: one batch of answers at the most. */
void np_readers_wait(struct np_readers *all)
{
	const struct timespec moment = { .tv_nsec = 20000 };
	uint64_t now;

	atomic_thread_fence(memory_order_seq_cst);
	now = atomic_fetch_add(&all->epoch, 1) + 1;
	for (int i = 0; i < NP_READERS; i++) {
		uint64_t seen;

		while ((seen = atomic_load(&all->reader[i].epoch)) && seen < now)
			nanosleep(&moment, NULL);
	}
}

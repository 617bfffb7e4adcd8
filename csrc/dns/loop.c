/* Threads that answer: each waits for the sockets that are its own, and never for another thread. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "batch.h"

enum { STACK = 256 * 1024, EVENTS = 16, THREADS_MAX = NP_READERS / 2 };
#define STOP UINT32_MAX

struct np_loop {
	int stop; /* an eventfd; readable: all threads end */
	int running, ready;
	int *sockets;
	struct np_worker *worker[THREADS_MAX];
};

static void *run(void *arg)
{
	struct np_worker *w = arg;

	for (;;) {
		struct epoll_event events[EVENTS];
		int n = epoll_wait(w->epoll, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			uint32_t socket = events[i].data.u32;

			if (socket == STOP)
				return NULL;
			/* A socket that stays full lets the others have their turn after each batch. */
			np_batch_serve(w, w->sockets[socket], socket);
		}
	}
}

static int watch(struct np_worker *w, int fd, uint32_t number)
{
	struct epoll_event e = { .events = EPOLLIN, .data.u32 = number };

	return epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &e) ? -errno : 0;
}

static void worker_free(struct np_worker *w)
{
	if (w->epoll >= 0)
		close(w->epoll);
	if (w->reader)
		np_reader_leave(w->reader);
	free(w);
}

/* Number i of so many: it serves every so-manieth socket. */
static int worker_new(struct np_loop *l, struct np_table *t, int i, int threads, int count, struct np_worker **made)
{
	struct np_worker *w = aligned_alloc(64, (sizeof(*w) + 63) / 64 * 64);
	int result = -ENOMEM;

	if (!w)
		return result;
	memset(w, 0, sizeof(*w));
	w->table = t;
	w->sockets = l->sockets;
	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	w->reader = np_reader_join(np_table_readers(t));
	result = w->epoll < 0 ? -errno : w->reader ? 0 : -EBUSY;
	if (!result)
		result = watch(w, l->stop, STOP);
	for (int k = i; k < count && !result; k += threads)
		result = watch(w, l->sockets[k], (uint32_t)k);
	if (result) {
		worker_free(w);
		return result;
	}
	np_batch_init(&w->batch);
	*made = w;
	return 0;
}

static int start_threads(struct np_loop *l)
{
	pthread_attr_t attr;
	sigset_t all, before;
	int result = 0;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are Python's main thread's */
	for (; l->running < l->ready && !result; l->running += !result) {
		char name[16];

		result = -pthread_create(&l->worker[l->running]->thread, &attr, run, l->worker[l->running]);
		snprintf(name, sizeof(name), "dns-%d", l->running);
		if (!result)
			pthread_setname_np(l->worker[l->running]->thread, name);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return result;
}

/* The sockets are UDP, bound and not blocking; they stay the caller's, and so do misses (a socket of
 * packets) and the table, until np_loop_free. NULL: *error is a negative errno. */
struct np_loop *np_loop_start(struct np_table *t, const int *sockets, int count, int threads,
			      int misses, int *error)
{
	struct np_loop *l = calloc(1, sizeof(*l));

	*error = -ENOMEM;
	if (!l)
		return NULL;
	l->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->sockets = calloc((size_t)count + 1, sizeof(int));
	*error = l->stop < 0 ? -errno : l->sockets ? 0 : -ENOMEM;
	if (*error)
		goto fail;
	memcpy(l->sockets, sockets, (size_t)count * sizeof(int));
	threads = threads < 1 ? 1 : threads > THREADS_MAX ? THREADS_MAX : threads;
	for (; l->ready < threads; l->ready++) {
		*error = worker_new(l, t, l->ready, threads, count, &l->worker[l->ready]);
		if (*error)
			goto fail;
		l->worker[l->ready]->misses = misses;
	}
	*error = start_threads(l);
	if (*error)
		goto fail;
	return l;
fail:
	np_loop_stop(l);
	np_loop_free(l);
	return NULL;
}

/* End the threads, each after the batch that it has; what was counted stays. */
void np_loop_stop(struct np_loop *l)
{
	if (l->stop >= 0 && eventfd_write(l->stop, 1))
		return;
	for (; l->running; l->running--)
		pthread_join(l->worker[l->running - 1]->thread, NULL);
}

void np_loop_free(struct np_loop *l)
{
	for (; l->ready; l->ready--)
		worker_free(l->worker[l->ready - 1]);
	if (l->stop >= 0)
		close(l->stop);
	free(l->sockets);
	free(l);
}

/* Another limit for all threads, or NULL; when this returns none of them uses the one before. */
void np_loop_limit(struct np_loop *l, struct np_limit *limit)
{
	for (int i = 0; i < l->ready; i++)
		atomic_store_explicit(&l->worker[i]->limit, limit, memory_order_release);
	np_readers_wait(np_table_readers(l->worker[0]->table));
}

/* All threads together; each may be one batch behind. */
void np_loop_sum(const struct np_loop *l, struct np_counters *sum)
{
	uint64_t *total = (uint64_t *)sum;

	memset(sum, 0, sizeof(*sum));
	for (int i = 0; i < l->ready; i++) {
		const uint64_t *one = (const uint64_t *)&l->worker[i]->counters;

		for (size_t k = 0; k < sizeof(*sum) / sizeof(*one); k++)
			total[k] += __atomic_load_n(&one[k], __ATOMIC_RELAXED);
	}
}

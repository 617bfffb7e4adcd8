/* Pairs that are made while their caller goes on: threads of our own, which know nothing of Python's lock.
 *
 * The kernel makes one link at a time, so a few threads are enough however many wait. They stay: making one
 * costs as much as what it saves. A child that is forked has none of them, and makes its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "rtnl.h"

#define CREW 4

struct np_errand {
	struct np_errand *next;
	pthread_cond_t done;
	int own, size, result, finished;
	unsigned int seq;
	char *netns, told[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t come = PTHREAD_COND_INITIALIZER;
static struct np_errand *first, **last = &first;
static int crew, idle;

static struct np_errand *errand_take(void)
{
	struct np_errand *e;

	idle++;
	while (!first)
		pthread_cond_wait(&come, &lock);
	idle--;
	e = first;
	first = e->next;
	if (!first)
		last = &first;
	return e;
}

static void *crew_work(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&lock);
	for (;;) {
		struct np_errand *e = errand_take();
		int result;

		pthread_mutex_unlock(&lock);
		result = np_pair_make(e->own, e->seq, e->netns, e->told, e->size);
		pthread_mutex_lock(&lock);
		e->result = result;
		e->finished = 1;
		pthread_cond_signal(&e->done);
	}
	return NULL;
}

static void crew_lost(void)
{
	pthread_mutex_init(&lock, NULL);
	crew = idle = 0;
	first = NULL;
	last = &first;
}

/* One more, who takes no signals: those are for Python's threads. -errno. */
static int crew_hire(void)
{
	static int prepared;
	sigset_t all, before;
	pthread_t thread;
	int result;

	if (!prepared)
		prepared = !pthread_atfork(NULL, NULL, crew_lost);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	result = -pthread_create(&thread, NULL, crew_work, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!result) {
		pthread_detach(thread);
		crew++;
	}
	return result;
}

/* Begin np_pair_make. NULL without memory or threads: nothing was begun. What it gets is copied. */
struct np_errand *np_errand_begin(int own, unsigned int seq, const char *netns, const char *told, int size)
{
	size_t path = strlen(netns) + 1;
	struct np_errand *e = size < 0 ? NULL : malloc(sizeof(*e) + size + path);
	int begun;

	if (!e)
		return NULL;
	*e = (struct np_errand){ .own = own, .seq = seq, .size = size };
	pthread_cond_init(&e->done, NULL);
	memcpy(e->told, told, size);
	e->netns = memcpy(e->told + size, netns, path);
	pthread_mutex_lock(&lock);
	begun = idle || crew >= CREW || !crew_hire() || crew;
	if (begun) {
		*last = e;
		last = &e->next;
		pthread_cond_signal(&come);
	}
	pthread_mutex_unlock(&lock);
	if (begun)
		return e;
	free(e);
	return NULL;
}

/* Wait for its end; what np_pair_make returned. The errand is gone. */
int np_errand_end(struct np_errand *e)
{
	int result;

	pthread_mutex_lock(&lock);
	while (!e->finished)
		pthread_cond_wait(&e->done, &lock);
	pthread_mutex_unlock(&lock);
	result = e->result;
	pthread_cond_destroy(&e->done);
	free(e);
	return result;
}

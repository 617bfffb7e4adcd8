/* The server: threads that wait for calls serve the sockets meanwhile, and take the calls in their order. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "inner.h"

#define BELL UINT64_MAX
#define LISTENER (UINT64_MAX - 1)
#define CLOCK (UINT64_MAX - 2)
enum { ACCEPTS = 64 };

/* Every event wakes one thread, the one that began to wait last (edges, one at a time). */
static int watch(struct np_rpc *s, int how, int fd, uint64_t number)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLET, .data.u64 = number };

	return epoll_ctl(s->epoll, how, fd, &e) ? -errno : 0;
}

static int init_locks(struct np_rpc *s)
{
	pthread_condattr_t attr;
	int result = -pthread_mutex_init(&s->lock, NULL);

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (!result)
		result = -pthread_cond_init(&s->quiet, &attr);
	pthread_condattr_destroy(&attr);
	return result;
}

/* The listener is bound, listens, does not block, and is the server's from now on. most: calls at a time;
 * one thread more keeps the sockets served while all are at work. patience: milliseconds in which a client has
 * said its whole message, and then has read the answer. NULL: *error is a negative errno. */
struct np_rpc *np_rpc_open(int listener, int most, int patience, int *error)
{
	struct np_rpc *s = calloc(1, sizeof(*s));

	*error = -ENOMEM;
	if (!s) {
		close(listener);
		return NULL;
	}
	s->listener = listener;
	s->most = most < 1 ? 1 : most > NP_RPC_THREADS ? NP_RPC_THREADS : most;
	s->patience = (uint64_t)(patience < 1 ? 1 : patience) * 1000000;
	TAILQ_INIT(&s->conns);
	TAILQ_INIT(&s->waiting);
	TAILQ_INIT(&s->owing);
	s->epoll = epoll_create1(EPOLL_CLOEXEC);
	s->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	*error = s->epoll < 0 || s->bell < 0 || s->clock < 0 ? -errno : 0;
	if (!*error)
		*error = init_locks(s);
	if (!*error)
		*error = watch(s, EPOLL_CTL_ADD, s->bell, BELL);
	if (!*error)
		*error = watch(s, EPOLL_CTL_ADD, s->clock, CLOCK);
	if (!*error)
		*error = watch(s, EPOLL_CTL_ADD, listener, LISTENER);
	if (!*error)
		return s;
	np_rpc_close(s);
	return NULL;
}

/* After np_rpc_stop has returned 0: no thread is in here any more. */
void np_rpc_close(struct np_rpc *s)
{
	while (!TAILQ_EMPTY(&s->conns))
		np_conn_close(TAILQ_FIRST(&s->conns));
	if (s->listener >= 0)
		close(s->listener);
	if (s->epoll >= 0)
		close(s->epoll);
	if (s->bell >= 0)
		close(s->bell);
	if (s->clock >= 0)
		close(s->clock);
	pthread_cond_destroy(&s->quiet);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* --- connections come ------------------------------------------------------------------------- */

/* Whether those who come are let in. */
void np_rpc_listen(struct np_rpc *s, int on)
{
	if (s->listener < 0 || s->deaf == !on)
		return;
	if (on ? !watch(s, EPOLL_CTL_ADD, s->listener, LISTENER) :
		 !epoll_ctl(s->epoll, EPOLL_CTL_DEL, s->listener, NULL))
		s->deaf = !on;
}

/* With as many connections as may be and somebody at the door, the one without calls that was silent longest
 * goes. */
static int make_room(struct np_rpc *s)
{
	struct pollfd door = { .fd = s->listener, .events = POLLIN };
	struct np_conn *c;

	if (s->connections < NP_RPC_CONNECTIONS || poll(&door, 1, 0) <= 0)
		return s->connections < NP_RPC_CONNECTIONS;
	TAILQ_FOREACH(c, &s->conns, among) {
		if (!TAILQ_EMPTY(&c->calls))
			continue;
		if (c->blocked || nghttp2_session_terminate_session(c->session, NGHTTP2_NO_ERROR))
			np_conn_close(c);
		else
			np_conn_flush(c);
		break;
	}
	return s->connections < NP_RPC_CONNECTIONS;
}

static void let_in(struct np_rpc *s)
{
	for (int i = 0; s->listener >= 0; i++) {
		int fd;

		if (i == ACCEPTS) {
			watch(s, EPOLL_CTL_MOD, s->listener, LISTENER); /* tells anew */
			return;
		}
		if (!make_room(s)) {
			np_rpc_listen(s, 0);
			return;
		}
		fd = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0)
			np_conn_open(s, fd);
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR && errno != ECONNABORTED && errno != EPERM) {
			np_rpc_listen(s, 0); /* no descriptors, no memory: until somebody goes, or a second is over */
			return;
		}
	}
}

/* --- clients that keep us waiting ------------------------------------------------------------- */

/* The clock ticks for the first that is due. It is not stopped when that one is through, so that a call costs
 * no system call: it finds then who is first by now, or nobody. */
static void tick(struct np_rpc *s)
{
	struct np_call *first = TAILQ_FIRST(&s->owing);
	struct itimerspec when = { .it_value = { .tv_nsec = 0 } };

	s->ticking = first != NULL;
	if (!first)
		return;
	when.it_value.tv_sec = (time_t)(first->due / 1000000000);
	when.it_value.tv_nsec = (long)(first->due % 1000000000);
	timerfd_settime(s->clock, TFD_TIMER_ABSTIME, &when, NULL);
}

/* From now on its client owes us a message, or the reading of an answer. */
void np_rpc_owes(struct np_call *call)
{
	struct np_rpc *s = call->server;

	call->due = np_now() + s->patience;
	TAILQ_INSERT_TAIL(&s->owing, call, queue);
	if (!s->ticking)
		tick(s);
}

/* Whose message is not whole in time is answered so; who then does not read, or sends no whole headers, is
 * hung up on. */
static void call_in(struct np_rpc *s)
{
	struct np_call *call;
	uint64_t now = np_now();

	while ((call = TAILQ_FIRST(&s->owing)) && call->due <= now) {
		struct np_conn *c = call->conn;

		if (call->state == NP_CALL_ANSWERED || !call->begun ||
		    np_call_refuse(call, NP_GRPC_DEADLINE, "its message did not come in time"))
			np_conn_close(c);
		else
			np_conn_flush(c);
	}
	tick(s);
	np_rpc_listen(s, 1);
}

/* --- calls ------------------------------------------------------------------------------------ */

static void ring(struct np_rpc *s)
{
	if (s->threads)
		eventfd_write(s->bell, 1);
}

/* The next call that somebody still waits for. */
static struct np_call *take(struct np_rpc *s)
{
	struct np_call *call;

	while (s->running < s->most && (call = TAILQ_FIRST(&s->waiting))) {
		struct np_conn *c = call->conn;

		TAILQ_REMOVE(&s->waiting, call, queue);
		c->chatter -= c->chatter < 4 ? c->chatter : 4;
		call->state = NP_CALL_RUNNING;
		if (!call->deadline || np_now() < call->deadline)
			return call;
		if (np_call_refuse(call, NP_GRPC_DEADLINE, "its time was over before it began"))
			np_conn_close(c);
		else
			np_conn_flush(c);
	}
	return NULL;
}

/* One event, waited for without the lock. */
static void serve(struct np_rpc *s)
{
	int patience = s->deaf ? 1000 : -1, n;
	struct epoll_event e;
	struct np_conn *c;

	pthread_mutex_unlock(&s->lock);
	n = epoll_wait(s->epoll, &e, 1, patience);
	pthread_mutex_lock(&s->lock);
	if (n == 0)
		np_rpc_listen(s, 1);
	if (n <= 0 || e.data.u64 == BELL)
		return;
	if (e.data.u64 == LISTENER) {
		let_in(s);
		return;
	}
	if (e.data.u64 == CLOCK) {
		call_in(s);
		return;
	}
	c = s->slot[(uint32_t)e.data.u64];
	if (c && c->number == e.data.u64)
		np_conn_serve(c, e.events);
}

static void give(struct np_rpc *s, struct np_call *call, struct np_rpc_request *request)
{
	uint32_t token = 0;

	while (s->given[token])
		token++;
	s->given[token] = call;
	s->running++;
	*request = (struct np_rpc_request){
		.token = token, .lonely = !s->threads,
		.path = call->path, .size = call->size,
		.message = call->message ? call->message : call->prefix, /* an empty one has no room of its own */
	};
}

/* Wait for a call, and serve the sockets meanwhile. 0, or -ESHUTDOWN: the server has stopped. */
int np_rpc_next(struct np_rpc *s, struct np_rpc_request *request)
{
	struct np_call *call = NULL;

	pthread_mutex_lock(&s->lock);
	s->threads++;
	while (!s->over && !(call = take(s)))
		serve(s);
	s->threads--;
	if (call)
		give(s, call, request);
	else
		pthread_cond_broadcast(&s->quiet);
	if (s->over || (s->running < s->most && !TAILQ_EMPTY(&s->waiting)))
		ring(s);
	pthread_mutex_unlock(&s->lock);
	return call ? 0 : -ESHUTDOWN;
}

/* Answer a call: with a message (status 0), or with a gRPC status and why, in UTF-8. */
void np_rpc_reply(struct np_rpc *s, uint32_t token, int status, const uint8_t *bytes, size_t size)
{
	struct np_call *call;
	struct np_conn *c;

	pthread_mutex_lock(&s->lock);
	call = s->given[token];
	c = call->conn;
	s->given[token] = NULL;
	s->running--;
	if (!c)
		np_call_free(call);
	else if (np_call_answer(call, status, bytes, size))
		np_conn_close(c);
	else
		np_conn_flush(c);
	pthread_cond_broadcast(&s->quiet);
	pthread_mutex_unlock(&s->lock);
}

/* --- the end ---------------------------------------------------------------------------------- */

static int answered(const struct np_rpc *s)
{
	const struct np_conn *c;

	TAILQ_FOREACH(c, &s->conns, among)
		if (c->blocked || !TAILQ_EMPTY(&c->calls))
			return 0;
	return 1;
}

static int alone(const struct np_rpc *s)
{
	return !s->running && !s->threads;
}

static void wait_for(struct np_rpc *s, int (*holds)(const struct np_rpc *), int ms)
{
	uint64_t end = np_now() + (uint64_t)ms * 1000000;
	struct timespec until = { (time_t)(end / 1000000000), (long)(end % 1000000000) };

	while (!holds(s) && pthread_cond_timedwait(&s->quiet, &s->lock, &until) != ETIMEDOUT)
		;
}

/* Let nobody in and no new call; wait for the calls that are here, grace milliseconds at most; hang up; wait
 * for what still runs, and for all threads to be told, patience at most. How many are not out by then. */
int np_rpc_stop(struct np_rpc *s, int grace, int patience)
{
	int left;

	pthread_mutex_lock(&s->lock);
	np_rpc_listen(s, 0);
	close(s->listener);
	s->listener = -1;
	s->deaf = 0;
	for (int i = 0; i < NP_RPC_CONNECTIONS; i++)
		if (s->slot[i])
			np_conn_go(s->slot[i]);
	wait_for(s, answered, grace);
	while (!TAILQ_EMPTY(&s->conns))
		np_conn_close(TAILQ_FIRST(&s->conns));
	s->over = 1;
	ring(s);
	wait_for(s, alone, patience);
	left = s->running + s->threads;
	pthread_mutex_unlock(&s->lock);
	return left;
}

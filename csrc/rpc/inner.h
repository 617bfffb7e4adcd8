/* What the parts of the server know of each other; see rpc.h. All of it is under the server's lock. */
#ifndef NP_RPC_INNER_H
#define NP_RPC_INNER_H

#include <nghttp2/nghttp2.h>
#include <pthread.h>
#include <sys/queue.h>

#include "rpc.h"

enum { NP_GRPC_OK = 0, NP_GRPC_DEADLINE = 4, NP_GRPC_EXHAUSTED = 8, NP_GRPC_UNIMPLEMENTED = 12, NP_GRPC_INTERNAL = 13,
       NP_GRPC_UNAVAILABLE = 14 };
enum { NP_PREFIX = 5 }; /* bytes before a message: whether it is compressed, and its length */

enum np_call_state {
	NP_CALL_ARRIVING, /* headers and message come in; the client owes the rest */
	NP_CALL_WAITING,  /* whole, in the server's queue */
	NP_CALL_RUNNING,  /* with a thread */
	NP_CALL_ANSWERED, /* the answer goes out, and the client is to read it; what still comes in is dropped */
};

struct np_call {
	TAILQ_ENTRY(np_call) among; /* its connection's */
	TAILQ_ENTRY(np_call) queue; /* those that wait, or those whose client owes us something */
	struct np_rpc *server;
	struct np_conn *conn;       /* NULL: it is gone, or the call was cancelled; nobody waits for the answer */
	int32_t stream;
	enum np_call_state state;
	int post, grpc, packed;     /* what the headers say; packed: messages may be compressed */
	int begun;                  /* the headers are whole */
	int bad_timeout;
	uint64_t deadline;          /* of np_now, 0: none */
	uint64_t due;               /* of np_now: what its client owes */
	size_t headers;             /* bytes of them */
	char *path;
	uint8_t prefix[NP_PREFIX];
	size_t size, have, room;    /* of the message; have counts the prefix too */
	uint8_t *message;
	size_t sent;                /* of an answer, which takes the message's place, prefix and all */
};
TAILQ_HEAD(np_calls, np_call);

struct np_conn {
	TAILQ_ENTRY(np_conn) among; /* the server's, the one that was silent longest first */
	struct np_rpc *server;
	nghttp2_session *session;
	uint64_t number;            /* its place in the server's slots, and how often that was taken */
	int fd;
	int blocked;                /* the socket is full: epoll tells when it is not */
	struct np_calls calls;
	size_t block;               /* bytes since the last frame with headers began; 0: another came since */
	uint64_t second;            /* in which this many frames came that carry no call; nghttp2 tells of its own kinds */
	unsigned int chatter;
	size_t out_size, out_sent;
	uint8_t out[65536];         /* what nghttp2 gave and the socket did not take yet */
};
TAILQ_HEAD(np_conns, np_conn);

struct np_rpc {
	pthread_mutex_t lock;
	pthread_cond_t quiet;       /* something ended; for np_rpc_stop */
	int listener;               /* -1: stopped */
	int deaf;                   /* the listener is not watched: there are too many connections */
	int epoll, bell;            /* bell: an eventfd; each ring wakes one thread that waits */
	int clock, ticking;         /* a timerfd, for the first of those that owe */
	uint64_t patience;          /* with them, nanoseconds */
	int most, running, threads; /* calls at a time, now; threads that wait for one */
	int over;
	size_t held;
	int connections;
	struct np_conns conns;
	struct np_conn *slot[NP_RPC_CONNECTIONS];
	uint32_t taken[NP_RPC_CONNECTIONS]; /* a slot, so often: an event of who was there before is nobody's */
	struct np_calls waiting;
	struct np_calls owing;      /* ARRIVING and ANSWERED; the first is due first */
	struct np_call *given[NP_RPC_THREADS];
};

/* --- text.c: pure ----------------------------------------------------------------------------- */

int np_text_timeout(const uint8_t *text, size_t size, uint64_t *ns);
size_t np_text_escape(const uint8_t *text, size_t size, char *out, size_t room);
int np_text_is_grpc(const uint8_t *text, size_t size);

/* --- call.c ----------------------------------------------------------------------------------- */

uint64_t np_now(void); /* nanoseconds */
struct np_call *np_call_new(struct np_conn *c, int32_t stream);
int np_call_header(struct np_call *call, const uint8_t *name, size_t name_size, const uint8_t *value, size_t size);
int np_call_begin(struct np_call *call);
int np_call_data(struct np_call *call, const uint8_t *data, size_t size);
int np_call_end(struct np_call *call);
int np_call_refuse(struct np_call *call, int status, const char *text);
int np_call_http(struct np_call *call, const char *status);
int np_call_answer(struct np_call *call, int status, const uint8_t *bytes, size_t size);
void np_call_gone(struct np_call *call);
void np_call_free(struct np_call *call);

/* --- conn.c ----------------------------------------------------------------------------------- */

int np_conn_open(struct np_rpc *s, int fd);
void np_conn_serve(struct np_conn *c, uint32_t events);
void np_conn_flush(struct np_conn *c);
void np_conn_go(struct np_conn *c);
void np_conn_close(struct np_conn *c);

/* --- server.c --------------------------------------------------------------------------------- */

void np_rpc_listen(struct np_rpc *s, int on);
void np_rpc_owes(struct np_call *call);

#endif

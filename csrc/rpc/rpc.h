/* Unary gRPC over HTTP/2 on a unix socket: threads ask for the next call, and answer it.
 *
 * Rule 1: the threads that carry calls out also serve the sockets, while they wait for a call: a call goes
 *         from the socket to its handler and back within one thread, and wakes no other.
 * Rule 2: one lock. It is held while bytes are moved and frames are read, never while anything is waited for.
 * Rule 3: what one peer can make us hold is bounded (NP_RPC_*), and no bytes of a peer end the server.
 */
#ifndef NP_RPC_H
#define NP_RPC_H

#include <stddef.h>
#include <stdint.h>

/* cdef */

enum {
	NP_RPC_THREADS = 128,          /* calls at a time, at most */
	NP_RPC_MESSAGE = 4194304,      /* bytes of one message, as gRPC has it everywhere */
	NP_RPC_HELD = 67108864,        /* bytes of all messages that are held; more are refused */
	NP_RPC_HEADERS = 16384,        /* bytes of one call's headers, counted as HTTP/2 does (RFC 9113 6.5.2) */
	NP_RPC_PATH = 256,             /* bytes of a method's path that are kept; no method has as many */
	NP_RPC_STREAMS = 100,          /* calls of one connection */
	NP_RPC_CONNECTIONS = 256,      /* beyond, idle ones are closed, or new ones wait */
	NP_RPC_CHATTER = 10000,        /* frames of one connection in a second that carry no call */
};

struct np_rpc_request {
	uint32_t token;      /* which call; for np_rpc_reply */
	int lonely;          /* nobody else waits for calls: make another thread, unless there are enough */
	const char *path;    /* "/package.Service/Method"; this and the message are there until the reply */
	size_t size;
	const uint8_t *message;
};

struct np_rpc;

struct np_rpc *np_rpc_open(int listener, int most, int patience, int *error);
int np_rpc_next(struct np_rpc *s, struct np_rpc_request *request);
void np_rpc_reply(struct np_rpc *s, uint32_t token, int status, const uint8_t *bytes, size_t size);
int np_rpc_stop(struct np_rpc *s, int grace, int patience);
void np_rpc_close(struct np_rpc *s);

/* end */

#endif

/* One call: its headers, its one message, and the answer. See "gRPC over HTTP/2" (PROTOCOL-HTTP2.md). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "inner.h"

enum { STATIC = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE, TEXT = 4096, ROOM = 4096 };
#define PAIR(name, value) { (uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, sizeof(value) - 1, STATIC }

static const nghttp2_nv BEGIN[] = { PAIR(":status", "200"), PAIR("content-type", "application/grpc") };
static const nghttp2_nv DONE[] = { PAIR("grpc-status", "0") };
static const nghttp2_nv ACCEPTED = PAIR("grpc-accept-encoding", "identity");

uint64_t np_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

struct np_call *np_call_new(struct np_conn *c, int32_t stream)
{
	struct np_call *call = calloc(1, sizeof(*call));

	if (!call)
		return NULL;
	call->server = c->server;
	call->conn = c;
	call->stream = stream;
	TAILQ_INSERT_TAIL(&c->calls, call, among);
	np_rpc_owes(call);
	return call;
}

void np_call_free(struct np_call *call)
{
	call->server->held -= call->room;
	free(call->message);
	free(call->path);
	free(call);
}

/* Its stream is closed, or its connection. A call that runs goes on to its end. */
void np_call_gone(struct np_call *call)
{
	TAILQ_REMOVE(&call->conn->calls, call, among);
	call->conn = NULL;
	pthread_cond_broadcast(&call->server->quiet);
	if (call->state == NP_CALL_RUNNING)
		return;
	if (call->state == NP_CALL_WAITING)
		TAILQ_REMOVE(&call->server->waiting, call, queue);
	else
		TAILQ_REMOVE(&call->server->owing, call, queue);
	np_call_free(call);
}

/* --- what comes in ---------------------------------------------------------------------------- */

static int is(const char *what, const uint8_t *text, size_t size)
{
	return strlen(what) == size && !memcmp(what, text, size);
}

int np_call_header(struct np_call *call, const uint8_t *name, size_t name_size, const uint8_t *value, size_t size)
{
	uint64_t timeout;

	call->headers += name_size + size + 32;
	if (call->headers > NP_RPC_HEADERS)
		return call->headers > 4 * NP_RPC_HEADERS ? -EMSGSIZE : 0;
	if (call->begun)
		return 0; /* trailers say nothing */
	if (is(":path", name, name_size)) {
		free(call->path);
		call->path = strndup((const char *)value, size < NP_RPC_PATH ? size : NP_RPC_PATH);
		return call->path ? 0 : -ENOMEM;
	}
	if (is(":method", name, name_size))
		call->post = is("POST", value, size);
	else if (is("content-type", name, name_size))
		call->grpc = np_text_is_grpc(value, size);
	else if (is("grpc-encoding", name, name_size))
		call->packed = !is("identity", value, size);
	else if (is("grpc-timeout", name, name_size)) {
		call->bad_timeout = np_text_timeout(value, size, &timeout) < 0;
		call->deadline = call->bad_timeout ? 0 : np_now() + timeout;
	}
	return 0;
}

/* The headers are whole. */
int np_call_begin(struct np_call *call)
{
	call->begun = 1;
	if (call->headers > NP_RPC_HEADERS)
		return np_call_refuse(call, NP_GRPC_EXHAUSTED, "the call's headers are too large");
	if (!call->post)
		return np_call_http(call, "405");
	if (!call->grpc || !call->path)
		return np_call_http(call, "415");
	if (call->bad_timeout)
		return np_call_refuse(call, NP_GRPC_INTERNAL, "grpc-timeout is none");
	return 0;
}

static int read_prefix(struct np_call *call)
{
	const uint8_t *p = call->prefix;

	call->size = (size_t)p[1] << 24 | (size_t)p[2] << 16 | (size_t)p[3] << 8 | p[4];
	if (p[0] == 1 && call->packed)
		return np_call_refuse(call, NP_GRPC_UNIMPLEMENTED, "compressed messages are not read here");
	if (p[0])
		return np_call_refuse(call, NP_GRPC_INTERNAL, "the message is compressed, and it is not said how");
	if (call->size > NP_RPC_MESSAGE)
		return np_call_refuse(call, NP_GRPC_EXHAUSTED, "the message is larger than 4 MiB");
	return 0;
}

static int resize(struct np_call *call, size_t room)
{
	struct np_rpc *s = call->server;
	uint8_t *larger;

	if (room > call->room && s->held + room - call->room > NP_RPC_HELD)
		return -ENOBUFS;
	larger = realloc(call->message, room);
	if (!larger)
		return -ENOBUFS;
	call->message = larger;
	s->held += room - call->room;
	call->room = room;
	return 0;
}

/* Room grows with what has come, not with what was announced. */
static int append(struct np_call *call, const uint8_t *data, size_t size)
{
	size_t have = call->have - NP_PREFIX, room = call->room ? call->room : 256;

	while (room < have + size)
		room *= 2;
	if (room > call->room && resize(call, room))
		return np_call_refuse(call, NP_GRPC_UNAVAILABLE, "too many messages at once; come again");
	memcpy(call->message + have, data, size);
	call->have += size;
	return 0;
}

int np_call_data(struct np_call *call, const uint8_t *data, size_t size)
{
	while (size && call->state == NP_CALL_ARRIVING) {
		size_t want = call->have < NP_PREFIX ? NP_PREFIX - call->have : NP_PREFIX + call->size - call->have;
		size_t n = size < want ? size : want;
		int result = 0;

		if (!want)
			return np_call_refuse(call, NP_GRPC_UNIMPLEMENTED, "a call has one message, and here are more");
		if (call->have < NP_PREFIX) {
			memcpy(call->prefix + call->have, data, n);
			call->have += n;
			if (call->have == NP_PREFIX)
				result = read_prefix(call);
		} else {
			result = append(call, data, n);
		}
		if (result)
			return result;
		data += n;
		size -= n;
	}
	return 0;
}

/* The client has said all: the call waits for a thread. */
int np_call_end(struct np_call *call)
{
	if (call->state != NP_CALL_ARRIVING)
		return 0;
	if (!call->have)
		return np_call_refuse(call, NP_GRPC_UNIMPLEMENTED, "a call has one message, and here is none");
	if (call->have < NP_PREFIX || call->have < NP_PREFIX + call->size)
		return np_call_refuse(call, NP_GRPC_INTERNAL, "the message is cut off");
	call->state = NP_CALL_WAITING;
	TAILQ_REMOVE(&call->server->owing, call, queue);
	TAILQ_INSERT_TAIL(&call->server->waiting, call, queue);
	return 0;
}

/* --- what goes out ---------------------------------------------------------------------------- */

static int submit(struct np_call *call, const nghttp2_nv *pairs, size_t count, const nghttp2_data_provider *body)
{
	if (call->state == NP_CALL_ARRIVING)
		TAILQ_REMOVE(&call->server->owing, call, queue);
	call->state = NP_CALL_ANSWERED;
	np_rpc_owes(call);
	return nghttp2_submit_response(call->conn->session, call->stream, pairs, count, body) ? -ENOMEM : 0;
}

/* What is not gRPC gets an answer of HTTP. */
int np_call_http(struct np_call *call, const char *status)
{
	nghttp2_nv pair = { (uint8_t *)":status", (uint8_t *)status, 7, 3, STATIC };

	return submit(call, &pair, 1, NULL);
}

/* An answer that is trailers only. */
static int refuse(struct np_call *call, int status, const uint8_t *text, size_t size)
{
	static const char *const numbers[] = { "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13",
					       "14", "15", "16" };
	const char *number = numbers[status > 0 && status <= 16 ? status : 2];
	char escaped[TEXT];
	size_t length = np_text_escape(text, size, escaped, sizeof(escaped));
	nghttp2_nv pairs[] = {
		BEGIN[0], BEGIN[1], ACCEPTED,
		{ (uint8_t *)"grpc-status", (uint8_t *)number, 11, strlen(number), STATIC },
		{ (uint8_t *)"grpc-message", (uint8_t *)escaped, 12, length, NGHTTP2_NV_FLAG_NO_INDEX },
	};

	return submit(call, pairs, sizeof(pairs) / sizeof(*pairs), NULL);
}

int np_call_refuse(struct np_call *call, int status, const char *text)
{
	return refuse(call, status, (const uint8_t *)text, strlen(text));
}

static ssize_t read_answer(nghttp2_session *session, int32_t stream, uint8_t *out, size_t room, uint32_t *flags,
			   nghttp2_data_source *source, void *conn)
{
	struct np_call *call = source->ptr;
	size_t n = call->size - call->sent < room ? call->size - call->sent : room;

	(void)conn;
	memcpy(out, call->message + call->sent, n);
	call->sent += n;
	if (call->sent < call->size)
		return (ssize_t)n;
	*flags = NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
	return nghttp2_submit_trailer(session, stream, DONE, 1) ? NGHTTP2_ERR_CALLBACK_FAILURE : (ssize_t)n;
}

/* status 0: bytes are the message; otherwise the reason, in UTF-8. */
int np_call_answer(struct np_call *call, int status, const uint8_t *bytes, size_t size)
{
	nghttp2_data_provider body = { .source.ptr = call, .read_callback = read_answer };

	if (status)
		return refuse(call, status, bytes, size);
	if (size > UINT32_MAX || resize(call, NP_PREFIX + size))
		return np_call_refuse(call, NP_GRPC_UNAVAILABLE, "too many answers wait to be read; come again");
	for (int i = 0; i < NP_PREFIX; i++)
		call->message[i] = i ? (uint8_t)(size >> (8 * (4 - i))) : 0;
	memcpy(call->message + NP_PREFIX, bytes, size);
	call->size = call->room;
	return submit(call, BEGIN, 2, &body);
}

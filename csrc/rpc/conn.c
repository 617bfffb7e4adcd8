/* One connection: bytes between the socket and nghttp2, and what nghttp2 makes of them. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "inner.h"

enum {
	CHUNK = 16384,
	TURNS = 16,       /* chunks of one connection before the others have their turn */
	FRAME = 17000,    /* no frame that we send is larger */
	BLOCK = 4 * NP_RPC_HEADERS,
};

/* --- what nghttp2 tells ----------------------------------------------------------------------- */

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *conn)
{
	struct np_conn *c = conn;
	uint64_t second = np_now() / 1000000000;

	(void)session;
	if (hd->type != NGHTTP2_CONTINUATION)
		c->block = hd->type == NGHTTP2_HEADERS;
	if (hd->type == NGHTTP2_DATA && hd->length)
		return 0;
	if (c->second != second)
		c->chatter = 0;
	c->second = second;
	return ++c->chatter > NP_RPC_CHATTER ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *conn)
{
	struct np_call *call;

	if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	call = np_call_new(conn, frame->hd.stream_id);
	if (!call || nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, call))
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
		     const uint8_t *value, size_t size, uint8_t flags, void *conn)
{
	struct np_call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);

	(void)flags;
	(void)conn;
	return call && np_call_header(call, name, name_size, value, size) ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *conn)
{
	struct np_call *call;
	int result = 0;

	(void)conn;
	if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
		return 0;
	call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	if (!call)
		return 0;
	if (!call->begun)
		result = np_call_begin(call);
	if (!result && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
		result = np_call_end(call);
	return result ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t size,
		   void *conn)
{
	struct np_call *call = nghttp2_session_get_stream_user_data(session, stream);

	(void)flags;
	(void)conn;
	return call && np_call_data(call, data, size) ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

/* An answer that came before the client had said all: it need not say the rest (RFC 9113 8.1). */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *conn)
{
	(void)conn;
	if (frame->hd.type != NGHTTP2_HEADERS || !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM) ||
	    nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id))
		return 0;
	return nghttp2_submit_rst_stream(session, 0, frame->hd.stream_id, NGHTTP2_NO_ERROR);
}

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t code, void *conn)
{
	struct np_call *call = nghttp2_session_get_stream_user_data(session, stream);

	(void)code;
	(void)conn;
	if (call)
		np_call_gone(call);
	return 0;
}

static int session_new(struct np_conn *c)
{
	const nghttp2_settings_entry settings[] = {
		{ NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NP_RPC_STREAMS },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, NP_RPC_HEADERS },
	};
	nghttp2_session_callbacks *callbacks = NULL;
	nghttp2_option *option = NULL;
	int result = -ENOMEM;

	if (nghttp2_session_callbacks_new(&callbacks) || nghttp2_option_new(&option))
		goto out;
	nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
	nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
	nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
	nghttp2_option_set_no_closed_streams(option, 1); /* no memory of who is gone, for priorities */
	if (nghttp2_session_server_new2(&c->session, callbacks, c, option))
		goto out;
	result = nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 2) ? -ENOMEM : 0;
out:
	nghttp2_option_del(option);
	nghttp2_session_callbacks_del(callbacks);
	return result;
}

/* --- bytes ------------------------------------------------------------------------------------ */

static int watch(struct np_conn *c, int how)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = c->number };

	if (c->blocked)
		e.events |= EPOLLOUT;
	return epoll_ctl(c->server->epoll, how, c->fd, &e) ? -errno : 0;
}

/* The descriptor is ours from now on, whatever comes of it. */
int np_conn_open(struct np_rpc *s, int fd)
{
	struct np_conn *c = malloc(sizeof(*c));
	uint32_t slot = 0;
	int result;

	while (s->slot[slot])
		slot++; /* the server sees to it that there is one */
	if (!c) {
		close(fd);
		return -ENOMEM;
	}
	memset(c, 0, offsetof(struct np_conn, out));
	c->server = s;
	c->fd = fd;
	c->number = (uint64_t)++s->taken[slot] << 32 | slot;
	TAILQ_INIT(&c->calls);
	TAILQ_INSERT_TAIL(&s->conns, c, among);
	s->slot[slot] = c;
	s->connections++;
	result = session_new(c);
	if (!result)
		result = watch(c, EPOLL_CTL_ADD);
	if (result) {
		np_conn_close(c);
		return result;
	}
	np_conn_flush(c);
	return 0;
}

void np_conn_close(struct np_conn *c)
{
	struct np_rpc *s = c->server;
	struct np_call *call;

	nghttp2_session_del(c->session);
	while ((call = TAILQ_FIRST(&c->calls)))
		np_call_gone(call);
	TAILQ_REMOVE(&s->conns, c, among);
	s->slot[(uint32_t)c->number] = NULL;
	s->connections--;
	close(c->fd);
	free(c);
	pthread_cond_broadcast(&s->quiet);
	np_rpc_listen(s, 1);
}

static int fill(struct np_conn *c)
{
	c->out_size = c->out_sent = 0;
	while (sizeof(c->out) - c->out_size >= FRAME) {
		const uint8_t *data;
		ssize_t n = nghttp2_session_mem_send(c->session, &data);

		if (n < 0 || (size_t)n > sizeof(c->out) - c->out_size)
			return -EPROTO;
		if (!n)
			return 0;
		memcpy(c->out + c->out_size, data, (size_t)n);
		c->out_size += (size_t)n;
	}
	return 0;
}

/* What there is to say, until it is said or the socket is full; the connection may be gone after that. */
static int flush(struct np_conn *c)
{
	int before = c->blocked;

	c->blocked = 0;
	for (;;) {
		ssize_t n;

		if (c->out_sent == c->out_size && fill(c))
			return -EPROTO;
		if (!c->out_size)
			break;
		n = send(c->fd, c->out + c->out_sent, c->out_size - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n >= 0)
			c->out_sent += (size_t)n;
		else if (errno == EAGAIN) {
			c->blocked = 1;
			break;
		} else if (errno != EINTR)
			return -errno;
	}
	if (!c->blocked && !nghttp2_session_want_read(c->session))
		return -ECONNRESET; /* it was told why */
	if (before && !c->blocked)
		pthread_cond_broadcast(&c->server->quiet);
	/* A change also tells anew of what came while we did not read. */
	return before != c->blocked ? watch(c, EPOLL_CTL_MOD) : 0;
}

void np_conn_flush(struct np_conn *c)
{
	if (flush(c))
		np_conn_close(c);
}

/* A chunk: 1 when there may be more, 0 when all was read, -errno. */
static int hear(struct np_conn *c)
{
	uint8_t in[CHUNK];
	ssize_t n = recv(c->fd, in, sizeof(in), MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN ? 0 : errno == EINTR ? 1 : -errno;
	if (!n || nghttp2_session_mem_recv(c->session, in, (size_t)n) != n)
		return -ECONNRESET;
	if (c->block && (c->block += (size_t)n) > BLOCK)
		return -EMSGSIZE;
	return n == sizeof(in) ? 1 : 2;
}

/* Who does not read what we say is not heard: so nothing that it makes us say heaps up. */
void np_conn_serve(struct np_conn *c, uint32_t events)
{
	struct np_rpc *s = c->server;
	int more, result = flush(c);

	TAILQ_REMOVE(&s->conns, c, among);
	TAILQ_INSERT_TAIL(&s->conns, c, among);
	for (int turn = 0; !result && !c->blocked; turn++) {
		if (turn == TURNS) {
			result = watch(c, EPOLL_CTL_MOD); /* tells anew */
			break;
		}
		more = hear(c);
		result = more < 0 ? more : flush(c);
		/* What comes after a short read is told of anew; an end that was told of already is not. */
		if (!more || (more == 2 && events == EPOLLIN))
			break;
	}
	if (result)
		np_conn_close(c);
}

/* No new calls; those that are here go on. */
void np_conn_go(struct np_conn *c)
{
	int32_t last = nghttp2_session_get_last_proc_stream_id(c->session);

	if (nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, NULL, 0))
		np_conn_close(c);
	else
		np_conn_flush(c);
}

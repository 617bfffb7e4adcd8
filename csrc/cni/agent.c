/* One request to the agent: connect, send, receive, all before one deadline.
 *
 * A frame is a netstring of netstrings. Ours holds the tag, the CNI_* variables and the
 * configuration; the answer's holds the exit status in decimal and the text for stdout. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "cni.h"

static long remaining_ms(const struct timespec *deadline)
{
	struct timespec now;
	long left;

	clock_gettime(CLOCK_MONOTONIC, &now);
	left = (deadline->tv_sec - now.tv_sec) * 1000 + (deadline->tv_nsec - now.tv_nsec) / 1000000;
	return left > 0 ? left : 0;
}

/* connect() and send() of a unix socket wait for the peer's queue, no longer than SO_SNDTIMEO. */
static int limit_send(int fd, const struct timespec *deadline)
{
	long left = remaining_ms(deadline);
	struct timeval limit = { .tv_sec = left / 1000, .tv_usec = left % 1000 * 1000 };

	if (!left)
		return -ETIMEDOUT;
	return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0 ? -errno : 0;
}

static int agent_connect(const char *path, const struct timespec *deadline)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd, err;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	err = limit_send(fd, deadline);
	if (!err && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		err = errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (!err)
		return fd;
	close(fd);
	return err;
}

static int agent_send(int fd, const struct np_buffer *request, const struct timespec *deadline)
{
	size_t sent = 0;
	ssize_t some;
	int err;

	while (sent < request->size) {
		err = limit_send(fd, deadline);
		if (err)
			return err;
		some = send(fd, request->data + sent, request->size - sent, MSG_NOSIGNAL);
		if (some < 0 && errno != EINTR)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		sent += some > 0 ? (size_t)some : 0;
	}
	return 0;
}

/* How long the whole frame is that begins so: a netstring's length, colon, body and comma. 0: not known yet. */
static size_t frame_size(const struct np_buffer *raw)
{
	size_t length = 0, at = 0;

	for (; at < raw->size && raw->data[at] >= '0' && raw->data[at] <= '9' && length <= NP_ANSWER_MAX; at++)
		length = length * 10 + (size_t)(raw->data[at] - '0');
	return at < raw->size ? at + length + 2 : 0;
}

/* Ends with the frame, or where the agent ends it. */
static int agent_receive(int fd, struct np_buffer *raw, const struct timespec *deadline)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	char chunk[16384];
	ssize_t got;
	int err, left;

	for (;;) {
		left = (int)remaining_ms(deadline);
		err = left ? poll(&ready, 1, left) : 0;
		if (!err)
			return -ETIMEDOUT;
		if (err < 0 && errno != EINTR)
			return -errno;
		if (err < 0)
			continue;
		got = recv(fd, chunk, sizeof(chunk), MSG_DONTWAIT);
		if (!got)
			return 0;
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		err = got > 0 ? np_buffer_add(raw, chunk, (size_t)got) : 0;
		if (err)
			return err;
		if (raw->size && raw->size >= frame_size(raw) && frame_size(raw))
			return 0;
	}
}

/* The netstring at *at; *at moves behind it. Returns its length or -EPROTO. */
static ssize_t netstring_take(const char **at, const char *end, const char **data)
{
	size_t length = 0;
	const char *c = *at;

	for (; c < end && *c >= '0' && *c <= '9' && length <= NP_ANSWER_MAX; c++)
		length = length * 10 + (size_t)(*c - '0');
	if (c == *at || c >= end || *c != ':' || length >= (size_t)(end - c - 1))
		return -EPROTO;
	*data = c + 1;
	if ((*data)[length] != ',')
		return -EPROTO;
	*at = *data + length + 1;
	return (ssize_t)length;
}

static int answer_parse(const struct np_buffer *raw, struct np_answer *answer)
{
	const char *at = raw->data, *end = at + raw->size, *frame, *status;
	ssize_t size;

	if (!raw->size)
		return -ECONNRESET; /* the agent went away before it answered */
	size = netstring_take(&at, end, &frame);
	if (size < 0 || at != end)
		return -EPROTO;
	end = frame + size;
	size = netstring_take(&frame, end, &status);
	if (size != 1 || *status < '0' || *status > '9')
		return -EPROTO;
	answer->status = *status - '0';
	size = netstring_take(&frame, end, &answer->text);
	if (size < 0 || frame != end)
		return -EPROTO;
	answer->size = (size_t)size;
	return 0;
}

/* Returns 0 with the answer, whose text lies in raw; -ETIMEDOUT when the agent said nothing. */
int np_agent_ask(const char *path, const struct np_buffer *request, time_t seconds,
		 struct np_buffer *raw, struct np_answer *answer)
{
	struct timespec deadline;
	int fd, err;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += seconds;
	fd = agent_connect(path, &deadline);
	if (fd < 0)
		return fd;
	err = agent_send(fd, request, &deadline);
	if (!err)
		err = agent_receive(fd, raw, &deadline);
	if (!err)
		err = answer_parse(raw, answer);
	close(fd);
	return err;
}

/* Bytes that grow to a bound: beyond it -EMSGSIZE, so that no input makes us eat the machine. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cni.h"

static int buffer_reserve(struct np_buffer *buffer, size_t more)
{
	size_t room = buffer->room ? buffer->room : 4096;
	char *data;

	if (more > buffer->max - buffer->size)
		return -EMSGSIZE;
	while (room < buffer->size + more)
		room *= 2;
	if (room == buffer->room)
		return 0;
	data = realloc(buffer->data, room);
	if (!data)
		return -ENOMEM;
	buffer->data = data;
	buffer->room = room;
	return 0;
}

int np_buffer_add(struct np_buffer *buffer, const void *data, size_t size)
{
	int err = buffer_reserve(buffer, size);

	if (err)
		return err;
	if (size)
		memcpy(buffer->data + buffer->size, data, size);
	buffer->size += size;
	return 0;
}

/* D. J. Bernstein's netstring: the length in decimal, a colon, the bytes, a comma. */
int np_buffer_netstring(struct np_buffer *buffer, const void *data, size_t size)
{
	char head[24];
	int length = snprintf(head, sizeof(head), "%zu:", size);
	int err = np_buffer_add(buffer, head, length);

	if (!err)
		err = np_buffer_add(buffer, data, size);
	return err ? err : np_buffer_add(buffer, ",", 1);
}

/* All of fd to its end. -EMSGSIZE when it is longer than buffer->max. */
int np_buffer_read(struct np_buffer *buffer, int fd)
{
	char chunk[16384];
	ssize_t got;
	int err;

	for (;;) {
		got = read(fd, chunk, sizeof(chunk));
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got ? -errno : 0;
		err = np_buffer_add(buffer, chunk, got);
		if (err)
			return err;
	}
}

void np_buffer_free(struct np_buffer *buffer)
{
	free(buffer->data);
	buffer->data = NULL;
	buffer->size = buffer->room = 0;
}

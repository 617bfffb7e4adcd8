/* What clients say, for the harnesses of csrc/rpc. */
#ifndef RPC_FRAMES_H
#define RPC_FRAMES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"

static inline void must(int holds)
{
	if (!holds)
		abort();
}

static inline size_t frame(uint8_t *at, int type, int flags, uint32_t stream, const void *data, size_t size)
{
	const uint8_t head[] = { (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, (uint8_t)type,
				 (uint8_t)flags, (uint8_t)(stream >> 24), (uint8_t)(stream >> 16),
				 (uint8_t)(stream >> 8), (uint8_t)stream };

	memcpy(at, head, sizeof(head));
	memcpy(at + sizeof(head), data, size);
	return sizeof(head) + size;
}

static inline size_t pair(uint8_t *at, const char *name, const char *value)
{
	size_t n = strlen(name), v = strlen(value);

	at[0] = 0; /* HPACK: a literal that no table knows */
	at[1] = (uint8_t)n;
	memcpy(at + 2, name, n);
	at[2 + n] = (uint8_t)v;
	memcpy(at + 3 + n, value, v);
	return 3 + n + v;
}

/* A call's headers and its message of so many bytes; what it takes, 300 and the message. */
static inline size_t call(uint8_t *at, uint32_t stream, const char *timeout, size_t message)
{
	uint8_t *block = malloc(300 + message);
	size_t size = 0, all;

	must(block != NULL);
	size += pair(block + size, ":method", "POST");
	size += pair(block + size, ":scheme", "http");
	size += pair(block + size, ":path", "/t.T/Echo");
	size += pair(block + size, ":authority", "x");
	size += pair(block + size, "content-type", "application/grpc");
	size += pair(block + size, "grpc-timeout", timeout);
	all = frame(at, 1, 4, stream, block, size);
	memset(block, 0, 5 + message);
	block[3] = (uint8_t)(message >> 8);
	block[4] = (uint8_t)message;
	all += frame(at + all, 0, 1, stream, block, 5 + message);
	free(block);
	return all;
}

#endif

/* A JSON scanner (RFC 8259) that reads one top-level string and checks the shape of the rest.
 * It walks the text once with a cursor, recurses at most NP_JSON_DEPTH deep, and allocates nothing;
 * the agent parses the configuration again, strictly. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "cni.h"

#define NP_JSON_DEPTH 64

struct cursor {
	const char *at, *end;
};

static int skip_value(struct cursor *c, int depth);

static int peek(struct cursor *c)
{
	while (c->at < c->end && strchr(" \t\r\n", *c->at) && *c->at)
		c->at++;
	return c->at < c->end ? (unsigned char)*c->at : -1;
}

static int expect(struct cursor *c, char wanted)
{
	if (peek(c) != wanted)
		return -EINVAL;
	c->at++;
	return 0;
}

static int read_hex4(struct cursor *c, uint32_t *code)
{
	*code = 0;
	for (int i = 0; i < 4; i++) {
		const char *digits = "0123456789abcdef";
		const char *digit;

		if (c->at >= c->end || !*c->at)
			return -EINVAL;
		digit = strchr(digits, *c->at | (*c->at >= 'A' && *c->at <= 'F' ? 0x20 : 0));
		if (!digit)
			return -EINVAL;
		*code = *code << 4 | (uint32_t)(digit - digits);
		c->at++;
	}
	return 0;
}

static size_t write_utf8(uint32_t code, char out[4])
{
	static const unsigned char lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
	size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;

	for (size_t i = length; i-- > 1; code >>= 6)
		out[i] = (char)(0x80 | (code & 0x3f));
	out[0] = (char)(lead[length] | code);
	return length;
}

/* One escape, the cursor behind its backslash, as UTF-8. Returns its length or -EINVAL. */
static int read_escape(struct cursor *c, char out[4])
{
	static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
	uint32_t code, low;
	const char *name;

	if (c->at >= c->end || !*c->at)
		return -EINVAL;
	if (*c->at != 'u') {
		name = strchr(names, *c->at++);
		if (!name)
			return -EINVAL;
		out[0] = values[name - names];
		return 1;
	}
	c->at++;
	if (read_hex4(c, &code))
		return -EINVAL;
	if (code >= 0xd800 && code < 0xdc00) { /* a pair: RFC 8259 section 7 */
		if (c->end - c->at < 6 || c->at[0] != '\\' || c->at[1] != 'u')
			return -EINVAL;
		c->at += 2;
		if (read_hex4(c, &low) || low < 0xdc00 || low > 0xdfff)
			return -EINVAL;
		code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
	} else if (code >= 0xdc00 && code < 0xe000) {
		return -EINVAL;
	}
	return (int)write_utf8(code, out);
}

/* A string, decoded to out when there is one. Returns its whole length, even when it did not fit. */
static ssize_t read_string(struct cursor *c, char *out, size_t room)
{
	size_t length = 0;

	if (expect(c, '"'))
		return -EINVAL;
	while (c->at < c->end && *c->at != '"') {
		char piece[4] = { *c->at };
		int size = 1;

		if ((unsigned char)*c->at++ < 0x20)
			return -EINVAL;
		if (piece[0] == '\\')
			size = read_escape(c, piece);
		if (size < 0)
			return -EINVAL;
		if (out && length + (size_t)size < room)
			memcpy(out + length, piece, (size_t)size);
		length += (size_t)size;
	}
	if (out && room)
		out[length < room ? length : room - 1] = 0;
	return expect(c, '"') ? -EINVAL : (ssize_t)length;
}

static int skip_word(struct cursor *c)
{
	static const char *const words[] = { "true", "false", "null" };
	const char *start = c->at;

	for (size_t i = 0; i < 3; i++) {
		size_t length = strlen(words[i]);

		if ((size_t)(c->end - c->at) >= length && !memcmp(c->at, words[i], length)) {
			c->at += length;
			return 0;
		}
	}
	while (c->at < c->end && *c->at && strchr("+-.0123456789eE", *c->at))
		c->at++;
	return c->at == start ? -EINVAL : 0;
}

/* The members of an object or items of an array, the cursor on its opening bracket. */
static int skip_members(struct cursor *c, char close, int depth)
{
	c->at++;
	if (peek(c) == close) {
		c->at++;
		return 0;
	}
	for (;;) {
		if (close == '}' && (read_string(c, NULL, 0) < 0 || expect(c, ':')))
			return -EINVAL;
		if (skip_value(c, depth + 1))
			return -EINVAL;
		if (peek(c) == ',') {
			c->at++;
			continue;
		}
		return expect(c, close);
	}
}

static int skip_value(struct cursor *c, int depth)
{
	if (depth > NP_JSON_DEPTH)
		return -EINVAL;
	switch (peek(c)) {
	case '{':
		return skip_members(c, '}', depth);
	case '[':
		return skip_members(c, ']', depth);
	case '"':
		return read_string(c, NULL, 0) < 0 ? -EINVAL : 0;
	case -1:
		return -EINVAL;
	default:
		return skip_word(c);
	}
}

/* One member of the top-level object; a key that stands twice counts as its last, as in Go. */
static int read_member(struct cursor *c, const char *key, char *out, size_t room)
{
	char name[64];
	ssize_t length = read_string(c, name, sizeof(name));

	if (length < 0 || expect(c, ':'))
		return -EINVAL;
	if ((size_t)length != strlen(key) || strcmp(name, key))
		return skip_value(c, 1);
	if (peek(c) != '"')
		return skip_value(c, 1) ? -EINVAL : -EPROTOTYPE;
	length = read_string(c, out, room);
	if (length < 0)
		return -EINVAL;
	return (size_t)length < room && strlen(out) == (size_t)length ? 1 : -ENAMETOOLONG;
}

int np_json_string(const char *text, size_t size, const char *key, char *out, size_t room)
{
	struct cursor c = { .at = text, .end = text + size };
	int found = 0, one;

	if (expect(&c, '{'))
		return -EINVAL;
	if (peek(&c) == '}') {
		c.at++;
		return peek(&c) == -1 ? 0 : -EINVAL;
	}
	for (;;) {
		one = read_member(&c, key, out, room);
		if (one == -EINVAL)
			return one;
		found = one ? one : found;
		if (peek(&c) != ',')
			break;
		c.at++;
	}
	if (expect(&c, '}') || peek(&c) != -1)
		return -EINVAL;
	return found;
}

/* text as a JSON string with its quotes. Bytes above 0x7f pass: they are UTF-8 or were so given. */
int np_json_quote(struct np_buffer *out, const char *text)
{
	char escape[8];
	int err = np_buffer_add(out, "\"", 1);

	for (; !err && *text; text++) {
		unsigned char byte = (unsigned char)*text;

		if (byte >= 0x20 && byte != '"' && byte != '\\')
			err = np_buffer_add(out, text, 1);
		else
			err = np_buffer_add(out, escape,
					    (size_t)snprintf(escape, sizeof(escape), "\\u%04x", byte));
	}
	return err ? err : np_buffer_add(out, "\"", 1);
}

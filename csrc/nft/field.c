/* The parts of an element, from a fact's words to the bytes of nftables' registers.
 *
 * Each part of a concatenation fills whole 32-bit registers, padded with zeroes. Addresses, ports and
 * interface names are bytes as on the wire; numbers that never are on a wire have the host's order.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>

#include "nft.h"

#define NUMBER_MAX 0xffffffffULL

static int digit_of(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return 16;
}

static int number(const char *at, size_t len, int base, uint64_t max, uint32_t *out)
{
	uint64_t value = 0;

	if (base == 10 && len > 2 && at[0] == '0' && at[1] == 'x')
		return number(at + 2, len - 2, 16, max, out);
	if (!len)
		return -EINVAL;
	for (size_t i = 0; i < len; i++) {
		int digit = digit_of(at[i]);

		if (digit >= base)
			return -EINVAL;
		value = value * base + digit;
		if (value > max)
			return -EINVAL;
	}
	*out = value;
	return 0;
}

static int address(int family, const struct np_field *f, unsigned char *out)
{
	char text[INET6_ADDRSTRLEN];

	if (f->len >= sizeof(text))
		return -EINVAL;
	memcpy(text, f->at, f->len);
	text[f->len] = '\0';
	if (inet_pton(family, text, out) != 1)
		return -EINVAL;
	return family == AF_INET ? 4 : 16;
}

static int protocol(const struct np_field *f, unsigned char *out)
{
	static const struct { const char *name; uint8_t number; } known[] = {
		{ "tcp", 6 }, { "udp", 17 }, { "sctp", 132 }, { "icmp", 1 }, { "ipv6-icmp", 58 },
	};
	uint32_t value = 0;
	int err = -EINVAL;

	for (size_t i = 0; i < sizeof(known) / sizeof(*known) && err; i++) {
		if (strlen(known[i].name) == f->len && !memcmp(known[i].name, f->at, f->len)) {
			value = known[i].number;
			err = 0;
		}
	}
	if (err)
		err = number(f->at, f->len, 10, 255, &value);
	if (err)
		return err;
	memcpy(out, (unsigned char[4]){ value }, 4);
	return 4;
}

static int port(const struct np_field *f, unsigned char *out)
{
	uint32_t value;
	int err = number(f->at, f->len, 10, 65535, &value);

	if (err)
		return err;
	memcpy(out, (unsigned char[4]){ value >> 8, value & 0xff }, 4);
	return 4;
}

/* A traffic class, "major:minor" in hexadecimal digits. */
static int class_id(const struct np_field *f, unsigned char *out)
{
	const char *colon = memchr(f->at, ':', f->len);
	uint32_t major, minor, value;

	if (!colon || number(f->at, colon - f->at, 16, 0xffff, &major) ||
	    number(colon + 1, f->at + f->len - colon - 1, 16, 0xffff, &minor))
		return -EINVAL;
	value = major << 16 | minor;
	memcpy(out, &value, 4);
	return 4;
}

static int integer(const struct np_field *f, unsigned char *out)
{
	uint32_t value;
	int err = number(f->at, f->len, 10, NUMBER_MAX, &value);

	if (err)
		return err;
	memcpy(out, &value, 4);
	return 4;
}

static int interface(const struct np_field *f, unsigned char *out)
{
	if (!f->len || f->len >= IFNAMSIZ || memchr(f->at, '*', f->len))
		return -EINVAL;
	memset(out, 0, IFNAMSIZ);
	memcpy(out, f->at, f->len);
	return IFNAMSIZ;
}

int np_nft_field(char type, const struct np_field *f, unsigned char *out)
{
	switch (type) {
	case '4':
		return address(AF_INET, f, out);
	case '6':
		return address(AF_INET6, f, out);
	case 'p':
		return protocol(f, out);
	case 's':
		return port(f, out);
	case 'c':
		return class_id(f, out);
	case 'i':
		return integer(f, out);
	case 'n':
		return interface(f, out);
	}
	return -EINVAL;
}

static const char *protocol_name(int number)
{
	switch (number) {
	case 1:
		return "icmp";
	case 6:
		return "tcp";
	case 17:
		return "udp";
	case 58:
		return "ipv6-icmp";
	case 132:
		return "sctp";
	}
	return NULL;
}

static void number_words(char type, const unsigned char *at, char *out, size_t size)
{
	uint32_t value;

	memcpy(&value, at, 4);
	if (type == 'c')
		snprintf(out, size, "%x:%x", value >> 16, value & 0xffff);
	else
		snprintf(out, size, "%u", type == 's' ? (unsigned int)(at[0] << 8 | at[1]) : value);
}

int np_nft_words(char type, const unsigned char *at, size_t len, char *out, size_t size)
{
	size_t needed = type == '6' || type == 'n' ? 16 : 4;

	if (len < needed || size < INET6_ADDRSTRLEN + 2)
		return -EINVAL;
	if (type == '4' || type == '6')
		inet_ntop(type == '4' ? AF_INET : AF_INET6, at, out, size);
	else if (type == 'n')
		snprintf(out, size, "%.15s", (const char *)at);
	else if (type == 'p' && protocol_name(at[0]))
		snprintf(out, size, "%s", protocol_name(at[0]));
	else if (type == 'p')
		snprintf(out, size, "%u", at[0]);
	else
		number_words(type, at, out, size);
	return 0;
}

/* A packet into a query, as netplane/dns/wire.py does it: RFC 1035 4.1, RFC 6891 6.1. */
#include <errno.h>
#include <string.h>

#include "dns.h"

static inline uint8_t lower(uint8_t c)
{
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c; /* ASCII alone (RFC 4343) */
}

/* The question's name, uncompressed. Returns where it ends, or -EINVAL. */
static int parse_name(struct np_query *q, const uint8_t *packet, int len)
{
	int at = NP_HEADER;

	q->labels = 0;
	while (at < len) {
		int length = packet[at], start = at - NP_HEADER;

		if (length > 63 || start + 1 + length > NP_NAME_MAX || at + 1 + length > len)
			return -EINVAL;
		q->label_at[q->labels++] = (uint8_t)start;
		q->name[start] = (uint8_t)length;
		for (int i = 1; i <= length; i++)
			q->name[start + i] = lower(packet[at + i]);
		at += 1 + length;
		if (length == 0) {
			q->name_len = at - NP_HEADER;
			return at;
		}
	}
	return -EINVAL;
}

/* Where the name at at ends; a pointer ends it and is not followed, so nothing is read twice. */
static int skip_name(const uint8_t *packet, int len, int at)
{
	while (at < len) {
		int length = packet[at];

		if (length == 0)
			return at + 1;
		if (length >= 0xc0 && at + 2 <= len)
			return at + 2;
		if (length > 63)
			return -EINVAL;
		at += 1 + length;
	}
	return -EINVAL;
}

/* The records after the question; the only one that says anything to us is OPT. */
static int parse_records(struct np_query *q, const uint8_t *packet, int len, int at, int before, int all)
{
	for (int i = 0; i < all; i++) {
		int start = at, fixed = skip_name(packet, len, at);

		if (fixed < 0 || fixed + 10 > len)
			return -EINVAL;
		at = fixed + 10 + np_get16(packet + fixed + 8);
		if (at > len)
			return -EINVAL;
		if (i < before || np_get16(packet + fixed) != NP_TYPE_OPT)
			continue;
		if (q->has_edns || packet[start])
			return -EINVAL; /* one OPT, at the root (RFC 6891 6.1.1) */
		q->has_edns = 1;
		q->edns_size = np_get16(packet + fixed + 2);
		q->edns_version = packet[fixed + 5];
		q->dnssec = packet[fixed + 6] >> 7;
	}
	return 0;
}

/* A packet of at least a header. -EINVAL where FORMERR is right. */
int np_query_parse(struct np_query *q, const uint8_t *packet, int len)
{
	int end, before = np_get16(packet + 8);

	if (np_get16(packet + 4) != 1 || np_get16(packet + 6))
		return -EINVAL;
	end = parse_name(q, packet, len);
	if (end < 0 || end + 4 > len)
		return -EINVAL;
	q->packet = packet;
	q->flags = np_get16(packet + 2);
	q->type = np_get16(packet + end);
	q->class = np_get16(packet + end + 2);
	q->question_len = end + 4 - NP_HEADER;
	q->has_edns = q->edns_version = q->dnssec = 0;
	q->edns_size = 0;
	return parse_records(q, packet, len, end + 4, before, before + np_get16(packet + 10));
}

/* Where apex begins in the query's name, on a label's border; -1: the name is not within it. */
int np_query_offset(const struct np_query *q, const uint8_t *apex, int apex_len)
{
	int at = q->name_len - apex_len;

	if (at < 0 || memcmp(q->name + at, apex, (size_t)apex_len))
		return -1;
	for (int i = 0; i < q->labels; i++)
		if (q->label_at[i] == at)
			return at;
	return -1;
}

/* Any bytes as a query: np_answer stays within its buffers and says what a response may be.
 *
 * With libFuzzer (clang -fsanitize=fuzzer) or by itself: fuzz_answer SECONDS mutates its own queries.
 * The packet and the response lie in allocations of their exact size, so that AddressSanitizer sees
 * one byte too many.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "dns.h"

#define NAME(text) (const uint8_t *)text, (int)sizeof(text)
#define ZONE "\7cluster\5local"

static struct np_table *table;
static struct np_limit *limit;

static void must(int holds)
{
	if (!holds)
		abort();
}

/* One RRset in np_table_put's form: records of size bytes each, the last ones ending in tail. */
static int rrset(uint8_t *at, uint16_t type, int rotates, uint32_t count, const char *tail, uint16_t tail_len)
{
	uint8_t *start = at;
	uint16_t size = (uint16_t)(12 + tail_len);

	memcpy(at, &type, 2);
	at[2] = (uint8_t)rotates;
	at[3] = 0;
	memcpy(at + 4, &count, 4);
	at += 8;
	for (uint32_t i = 0; i < count; i++, at += 2 + size) {
		memcpy(at, &size, 2);
		memset(at + 2, 0, 12);
		np_put16(at + 2, 0xc00c);
		np_put16(at + 4, type);
		np_put16(at + 6, NP_CLASS_IN);
		np_put16(at + 12, tail_len);
		memcpy(at + 14, tail, tail_len);
	}
	return (int)(at - start);
}

static void setup(void)
{
	static const char srv[] = "\0\0\0\1\0\120\3web\7cluster\5local", soa[] = "\2ns\0\2me\0" "12345678901234567890";
	static uint8_t data[65536];
	int len;

	table = np_table_new(NAME(ZONE), 0);
	limit = np_limit_new(5, 5, 2);
	must(table && limit);
	len = rrset(data, NP_TYPE_SOA, 0, 1, soa, sizeof(soa));
	must(!np_table_put(table, NAME(ZONE), data, len));
	len = rrset(data, NP_TYPE_A, 1, 200, "abcd", 4);
	len += rrset(data + len, NP_TYPE_AAAA, 1, 3, "abcdefghijklmnop", 16);
	must(!np_table_put(table, NAME("\3web" ZONE), data, len));
	len = rrset(data, NP_TYPE_SRV, 1, 7, srv, sizeof(srv));
	must(!np_table_put(table, NAME("\5_http\3web" ZONE), data, len));
	len = rrset(data, NP_TYPE_CNAME, 0, 1, "\1x", 3);
	must(!np_table_put(table, NAME("\3ext" ZONE), data, len));
	must(!np_table_put(table, NAME("\3svc" ZONE), data, 0));
	np_table_sync(table, 1);
	np_table_divert(table, NP_DIVERT_PODS | NP_DIVERT_ENDPOINTS);
}

/* The bytes as what np_table_put is given: cut off or not, it takes them whole or not at all. */
static void put(const uint8_t *data, int len)
{
	uint8_t *copy = malloc((size_t)len + 1);

	must(copy != NULL);
	memcpy(copy, data, (size_t)len);
	np_table_put(table, NAME("\3put" ZONE), copy, len);
	np_table_commit(table);
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	int size = len % 3 ? NP_UDP_EDNS : NP_UDP_PLAIN, got;
	uint8_t *packet, *out;

	if (!table)
		setup();
	if (len > NP_PACKET)
		return 0;
	packet = malloc(len ? len : 1);
	out = malloc((size_t)size);
	must(packet && out);
	memcpy(packet, data, len);
	got = np_answer_alone(table, packet, (int)len, out, size);
	must(got <= size && (got >= NP_HEADER || got == 0 || got == NP_PYTHON));
	if (got > 0)
		must(!(packet[2] & 0x80) && out[2] & 0x80 && !memcmp(out, packet, 2));
	else if (got == NP_PYTHON)
		must(len >= NP_HEADER + 5);
	free(packet);
	free(out);
	if (len >= 16)
		np_limit_take(limit, data, data[0] & 1 ? AF_INET6 : AF_INET, (uint64_t)data[1] << 24);
	put(data, (int)len);
	return 0;
}

#ifndef LIBFUZZER
static unsigned int chance(unsigned int below)
{
	static unsigned int lfsr = 1;

	lfsr = lfsr * 1664525u + 1013904223u;
	return (lfsr >> 8) % below;
}

int main(int argc, char **argv)
{
	static const uint8_t seeds[][48] = {
		"\1\2\1\0\0\1\0\0\0\0\0\1\3web" ZONE "\0\0\1\0\1\0\0\51\4\320\0\0\0\0\0\0",
		"\1\2\1\0\0\1\0\0\0\0\0\0\5_http\3web" ZONE "\0\0\41\0\1",
		"\1\2\1\0\0\1\0\0\0\0\0\2\300\14\0\1\0\1\300\14\0\51",
		"\41\0\1\0\1\0\0\0\14\0abcdefghijkl",
	};
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);

	for (unsigned long i = 0; i % 1024 || time(NULL) < end; i++) {
		uint8_t packet[600];
		size_t len = chance(8) ? 48 : chance(sizeof(packet));

		for (size_t k = 0; k < sizeof(packet); k++)
			packet[k] = (uint8_t)chance(256);
		if (chance(16))
			memcpy(packet, seeds[chance(4)], 48);
		for (unsigned int k = chance(6); k; k--)
			packet[chance(48)] = (uint8_t)chance(256);
		LLVMFuzzerTestOneInput(packet, len - chance(4 < len ? 4 : 1));
	}
	np_table_free(table);
	np_limit_free(limit);
	return 0;
}
#endif

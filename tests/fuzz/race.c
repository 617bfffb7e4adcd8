/* Readers against the writer: names come, change and go while threads answer. Under AddressSanitizer
 * a name that is freed too early is a crash, under ThreadSanitizer a missing fence is a report. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dns.h"

enum { NAMES = 300, THREADS = 3, BATCH = 32 };

static struct np_table *table;
static _Atomic int stop;

static int name_of(uint8_t *name, int i)
{
	static const char zone[] = "\7cluster\5local";

	name[0] = 2;
	name[1] = (uint8_t)('a' + i / 20);
	name[2] = (uint8_t)('a' + i % 20);
	memcpy(name + 3, zone, sizeof(zone));
	return 3 + (int)sizeof(zone);
}

/* The address of a name is four times the same byte: a torn answer would show. */
static int data_of(uint8_t *data, uint8_t byte, uint32_t count)
{
	int at = 8;

	memset(data, 0, 8);
	data[0] = NP_TYPE_A;
	data[2] = 1;
	memcpy(data + 4, &count, 4);
	for (uint32_t i = 0; i < count; i++, at += 18) {
		uint16_t size = 16;

		memcpy(data + at, &size, 2);
		memset(data + at + 2, byte, 16);
	}
	return at;
}

static void *ask(void *seed)
{
	struct np_readers *all = np_table_readers(table);
	struct np_reader *me = np_reader_join(all);
	unsigned int random = (unsigned int)(uintptr_t)seed;
	struct np_query query[BATCH];
	uint8_t packet[BATCH][64], out[NP_UDP_EDNS];

	memset(packet, 0, sizeof(packet));
	while (!atomic_load(&stop)) {
		np_reader_online(all, me);
		for (int k = 0; k < BATCH; k++) { /* in steps, as batch.c does */
			int len;

			random = random * 1664525u + 1013904223u;
			packet[k][5] = 1;
			len = NP_HEADER + name_of(packet[k] + NP_HEADER, (int)(random >> 8) % NAMES);
			memcpy(packet[k] + len, "\0\1\0\1", 4);
			np_answer_begin(table, &query[k], packet[k], len + 4);
		}
		for (int k = 0; k < BATCH; k++)
			np_answer_fetch(table, &query[k]);
		for (int k = 0; k < BATCH; k++) {
			int got = np_answer_end(table, &query[k], out, sizeof(out));
			int start = NP_HEADER + query[k].question_len;

			for (int at = start; out[7] && at < got; at++)
				if (out[at] != out[start])
					abort();
		}
		np_reader_offline(me);
	}
	np_reader_leave(me);
	return NULL;
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
	uint8_t name[64], data[2048];
	pthread_t thread[THREADS];

	table = np_table_new((const uint8_t *)"\7cluster\5local", 15, 0);
	np_table_sync(table, 1);
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, ask, (void *)(i + 1));
	for (unsigned int i = 1; time(NULL) < end; i++) {
		int len = name_of(name, (int)(i * 7 % NAMES));

		if (i % 3)
			np_table_put(table, name, len, data, data_of(data, (uint8_t)i, 1 + i % 40));
		else
			np_table_remove(table, name, len);
		if (i % 5 == 0)
			np_table_commit(table);
	}
	atomic_store(&stop, 1);
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	np_table_free(table);
	return 0;
}

/* The answering loop: a table of ready records, and threads that look names up and send.
 *
 * Rule 1: one writer (Python, under a lock of its own) and any number of readers that take no lock.
 *         What a reader can see is never changed and is freed only when no reader can hold it any
 *         more (epochs, reader.c).
 * Rule 2: whatever the bytes, np_answer returns; it reads within the packet and writes within size.
 * Rule 3: what it does not know for certain it leaves to Python (NP_PYTHON). The two answer alike,
 *         byte for byte; netplane/dns/answer.py is the specification.
 */
#ifndef NP_DNS_H
#define NP_DNS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
	NP_TYPE_NS = 2, NP_TYPE_CNAME = 5, NP_TYPE_SOA = 6, NP_TYPE_A = 1, NP_TYPE_AAAA = 28,
	NP_TYPE_SRV = 33, NP_TYPE_OPT = 41, NP_TYPE_IXFR = 251, NP_TYPE_AXFR = 252, NP_TYPE_ANY = 255,
	NP_CLASS_IN = 1,
};
enum {
	NP_NOERROR = 0, NP_FORMERR = 1, NP_SERVFAIL = 2, NP_NXDOMAIN = 3, NP_NOTIMP = 4, NP_REFUSED = 5,
	NP_BADVERS = 16,
};
enum {
	NP_QR = 0x8000, NP_OPCODE = 0x7800, NP_AA = 0x0400, NP_TC = 0x0200, NP_RD = 0x0100, NP_RA = 0x0080,
	NP_CD = 0x0010,
};
enum {
	NP_HEADER = 12,
	NP_NAME_MAX = 255,
	NP_LABELS_MAX = 128,
	NP_UDP_PLAIN = 512, /* without EDNS (RFC 1035 4.2.1) */
	NP_UDP_EDNS = 1232, /* never a fragment on a path of 1280 */
	NP_OPT_SIZE = 11,
	NP_READERS = 64,
	NP_BATCH = 64,
	NP_PACKET = 4096, /* bytes of a query that are read */
};

/* --- names and queries (query.c) ------------------------------------------------------------- */

enum np_state { NP_SILENT, NP_REFUSE, NP_ASK }; /* no answer; rcode and a header alone; a whole query */

struct np_query {
	const uint8_t *packet;
	enum np_state state;
	int rcode;     /* NP_REFUSE: what is said */
	int offset;    /* NP_ASK: where the zone begins in name; -1: another zone's */
	uint64_t hash; /* NP_ASK: of name, for the table */
	int question_len; /* name, type and class as asked */
	int name_len;
	int labels;
	uint8_t label_at[NP_LABELS_MAX]; /* offsets into name, the root's last */
	uint8_t name[NP_NAME_MAX];       /* lower case */
	uint16_t flags, type, class;
	uint8_t has_edns, edns_version, dnssec;
	uint16_t edns_size;
};

int np_query_parse(struct np_query *q, const uint8_t *packet, int len);
int np_query_offset(const struct np_query *q, const uint8_t *apex, int apex_len);

static inline uint16_t np_get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static inline void np_put16(uint8_t *at, unsigned int value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* --- readers (reader.c) ---------------------------------------------------------------------- */

struct np_reader {
	_Alignas(64) _Atomic uint64_t epoch; /* 0: offline, holds nothing */
	_Atomic int taken;
};

struct np_readers {
	_Atomic uint64_t epoch;
	struct np_reader reader[NP_READERS];
};

struct np_reader *np_reader_join(struct np_readers *all);
void np_reader_leave(struct np_reader *r);
void np_reader_online(struct np_readers *all, struct np_reader *r);
void np_reader_offline(struct np_reader *r);
void np_readers_wait(struct np_readers *all);

/* --- the table (table.c) --------------------------------------------------------------------- */

struct np_rrset {
	uint16_t type;
	uint8_t rotates;
	uint32_t count;
	uint32_t size;           /* of all records */
	uint32_t *ends;          /* ends[i]: where record i ends in data */
	uint8_t *data;           /* records, each beginning with a pointer to the question's name */
	_Atomic uint32_t turn;
};

struct np_entry { /* one allocation, in the order that a lookup reads it */
	struct np_entry *_Atomic next; /* in its bucket; with a turn all that ever changes */
	uint64_t hash;
	uint8_t name_len;
	uint8_t to_python; /* an alias: followed there */
	uint16_t rrsets;
	uint32_t size; /* of the allocation */
	const uint8_t *name;
	struct np_rrset rrset[];
};

struct np_table;

const struct np_entry *np_table_find(const struct np_table *t, const uint8_t *name, int len);
uint64_t np_table_hash(const struct np_table *t, const uint8_t *name, int len);
const struct np_entry *np_table_look(const struct np_table *t, uint64_t hash, const uint8_t *name, int len);
void np_table_send_bucket(const struct np_table *t, uint64_t hash);
void np_table_send_entry(const struct np_table *t, uint64_t hash);
const struct np_rrset *np_entry_pick(const struct np_entry *e, int type);
uint64_t np_hash(const uint64_t key[2], const uint8_t *data, int len);

struct np_zone {
	uint8_t apex[NP_NAME_MAX];
	int apex_len;
	_Atomic int synced;
	_Atomic int to_python; /* np_table_divert: NP_DIVERT_…, bits */
};
const struct np_zone *np_table_zone(const struct np_table *t);
struct np_readers *np_table_readers(struct np_table *t);

/* --- counters and limits --------------------------------------------------------------------- */

/* cdef */
enum { NP_COUNT_TYPES = 258, NP_COUNT_RCODES = 16, NP_COUNT_BOUNDS = 16 };
enum { NP_ZONE_CLUSTER = 0, NP_ZONE_V4 = 1, NP_ZONE_V6 = 2, NP_ZONE_OTHER = 3, NP_ZONES = 4 };

struct np_counters { /* of one thread, or the sum of all; by the zone of the name, an NP_ZONE_… */
	uint64_t requests[4][258]; /* by type; 0: any other */
	uint64_t responses[4][16]; /* by rcode as the header has it */
	uint64_t buckets[4][16];   /* by seconds, as counters.BOUNDS; the last: longer */
	uint64_t nanoseconds[4];   /* all together */
	uint64_t silence, send, busy, limited, slipped;
	uint64_t to_python;
};

enum { NP_PYTHON = -11 }; /* -EAGAIN: not ours to answer */
enum { /* what else is left to Python; bits. Of the zone's names that the table does not have: */
	NP_DIVERT_PODS = 1,       /* pod.<apex> and beneath */
	NP_DIVERT_ENDPOINTS = 2,  /* those right beneath a service of svc.<apex> */
	NP_DIVERT_DENIALS = 4,    /* all of them */
	NP_DIVERT_EVERYTHING = 8, /* whatever is well-formed */
};

struct np_miss { /* goes before a packet that is left to Python */
	uint32_t socket;      /* index into the sockets given to np_loop_start */
	uint32_t address_len; /* of sockaddr */
	uint64_t arrived;     /* CLOCK_MONOTONIC, ns */
	uint32_t info_len;    /* of info; 0: the socket has one address */
	uint32_t info_family; /* AF_INET, AF_INET6 */
	uint8_t address[28];
	uint8_t info[20];     /* in_pktinfo or in6_pktinfo as it came */
};

struct np_table *np_table_new(const uint8_t *apex, int len, uint64_t names);
void np_table_free(struct np_table *t);
int np_table_put(struct np_table *t, const uint8_t *name, int name_len, const uint8_t *data, int len);
int np_table_remove(struct np_table *t, const uint8_t *name, int name_len);
void np_table_commit(struct np_table *t);
void np_table_sync(struct np_table *t, int synced);
void np_table_divert(struct np_table *t, int what);
uint64_t np_table_bytes(const struct np_table *t);
uint64_t np_table_names(const struct np_table *t);

int np_answer(const struct np_table *t, const uint8_t *packet, int len, uint8_t *out, int size);
int np_answer_alone(struct np_table *t, const uint8_t *packet, int len, uint8_t *out, int size);

struct np_limit;
struct np_limit *np_limit_new(double per_second, double burst, int slip);
void np_limit_free(struct np_limit *l);
int np_limit_take(struct np_limit *l, const uint8_t *address, int family, uint64_t now);

struct np_loop;
struct np_loop *np_loop_start(struct np_table *t, const int *sockets, int count, int threads,
			      int misses, int *error);
void np_loop_limit(struct np_loop *l, struct np_limit *limit);
void np_loop_stop(struct np_loop *l);
void np_loop_free(struct np_loop *l);
void np_loop_sum(const struct np_loop *l, struct np_counters *sum);
/* cdef */

/* np_answer in steps, for many packets at once: what the next step reads of the table is on its way
 * to the cache while the others take theirs (answer.c). */
void np_answer_begin(const struct np_table *t, struct np_query *q, const uint8_t *packet, int len);
void np_answer_fetch(const struct np_table *t, const struct np_query *q);
int np_answer_end(const struct np_table *t, const struct np_query *q, uint8_t *out, int size);
int np_query_zone(const struct np_query *q);

#endif

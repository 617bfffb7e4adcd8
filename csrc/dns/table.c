/* The names: a hash table that one writer changes under the readers' eyes.
 *
 * A bucket is a list of entries that never change. Putting links a new one in with one store, removing
 * links one out with one store: a reader sees the old list or the new one. What was unlinked waits in
 * `gone` until np_table_commit has seen all readers pass.
 *
 * The table is not one state in time across names (Python's view is); each name is.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "dns.h"

enum { BUCKETS_MIN = 64, ENTRY_LINES = 4 }; /* of the cache: an entry with one address and its name */

struct buckets {
	uint64_t mask;
	struct np_entry *_Atomic head[];
};

struct gone { /* to be freed after the next grace period */
	struct gone *next;
	void *what;
};

struct np_table {
	struct buckets *_Atomic buckets;
	struct np_zone zone;
	uint64_t key[2];
	/* the writer's own */
	uint64_t names, bytes;
	struct gone *gone;
	struct np_readers readers;
};

static struct buckets *buckets_new(uint64_t count)
{
	struct buckets *b = calloc(1, sizeof(*b) + count * sizeof(b->head[0]));

	if (b)
		b->mask = count - 1;
	return b;
}

/* Empty, with room for so many names before it must grow. */
struct np_table *np_table_new(const uint8_t *apex, int len, uint64_t names)
{
	uint64_t count = BUCKETS_MIN;
	struct np_table *t;

	if (len < 1 || len > NP_NAME_MAX || names > UINT32_MAX)
		return NULL;
	while (count / 2 < names)
		count *= 2;
	t = aligned_alloc(64, (sizeof(*t) + 63) / 64 * 64);
	if (!t)
		return NULL;
	memset(t, 0, sizeof(*t));
	t->readers.epoch = 1;
	memcpy(t->zone.apex, apex, (size_t)len);
	t->zone.apex_len = len;
	t->buckets = buckets_new(count);
	if (!t->buckets || getrandom(t->key, sizeof(t->key), 0) != sizeof(t->key)) {
		free(t->buckets);
		free(t);
		return NULL;
	}
	return t;
}

static void buckets_free(struct buckets *b)
{
	for (uint64_t i = 0; b && i <= b->mask; i++)
		for (struct np_entry *next, *e = b->head[i]; e; e = next) {
			next = e->next;
			free(e);
		}
	free(b);
}

static void collect(struct np_table *t)
{
	while (t->gone) {
		struct gone *g = t->gone;

		t->gone = g->next;
		free(g->what);
		free(g);
	}
}

/* Nobody reads any more. */
void np_table_free(struct np_table *t)
{
	if (!t)
		return;
	buckets_free(t->buckets);
	collect(t);
	free(t);
}

/* --- readers -------------------------------------------------------------------------------- */

uint64_t np_table_hash(const struct np_table *t, const uint8_t *name, int len)
{
	return np_hash(t->key, name, len);
}

/* The two places that a lookup waits for when the table is larger than the cache. */
void np_table_send_bucket(const struct np_table *t, uint64_t hash)
{
	const struct buckets *b = atomic_load_explicit(&t->buckets, memory_order_acquire);

	__builtin_prefetch((const void *)&b->head[hash & b->mask]);
}

void np_table_send_entry(const struct np_table *t, uint64_t hash)
{
	const struct buckets *b = atomic_load_explicit(&t->buckets, memory_order_acquire);
	const char *e = (const void *)atomic_load_explicit(&b->head[hash & b->mask], memory_order_acquire);

	for (int at = 0; e && at < ENTRY_LINES * 64; at += 64)
		__builtin_prefetch(e + at);
}

const struct np_entry *np_table_find(const struct np_table *t, const uint8_t *name, int len)
{
	return np_table_look(t, np_hash(t->key, name, len), name, len);
}

const struct np_entry *np_table_look(const struct np_table *t, uint64_t hash, const uint8_t *name, int len)
{
	const struct buckets *b = atomic_load_explicit(&t->buckets, memory_order_acquire);
	const struct np_entry *e = atomic_load_explicit(&b->head[hash & b->mask], memory_order_acquire);

	while (e && !(e->hash == hash && e->name_len == len && !memcmp(e->name, name, (size_t)len)))
		e = atomic_load_explicit(&e->next, memory_order_acquire);
	return e;
}

/* The records of one type; of ANY the first type, which is the lowest (RFC 8482 4.1). */
const struct np_rrset *np_entry_pick(const struct np_entry *e, int type)
{
	for (int i = 0; i < e->rrsets; i++)
		if (e->rrset[i].type == type || type == NP_TYPE_ANY)
			return &e->rrset[i];
	return NULL;
}

const struct np_zone *np_table_zone(const struct np_table *t)
{
	return &t->zone;
}

struct np_readers *np_table_readers(struct np_table *t)
{
	return &t->readers;
}

/* --- the writer ----------------------------------------------------------------------------- */

struct put { /* the head of one RRset in np_table_put's data */
	uint16_t type;
	uint8_t rotates, pad;
	uint32_t count;
};

/* How many RRsets, records and bytes of records data holds; -EINVAL when it is cut off. */
static int measure(const uint8_t *data, int len, uint32_t *rrsets, uint32_t *records, uint32_t *bytes)
{
	int at = 0;

	*rrsets = *records = *bytes = 0;
	while (at < len) {
		struct put head;

		if (len - at < (int)sizeof(head) || *rrsets == UINT16_MAX)
			return -EINVAL;
		memcpy(&head, data + at, sizeof(head));
		at += (int)sizeof(head);
		for (uint32_t i = 0; i < head.count; i++) {
			uint16_t size;

			if (len - at < 2)
				return -EINVAL;
			memcpy(&size, data + at, 2);
			at += 2 + size;
			if (at > len || size < NP_HEADER)
				return -EINVAL;
			*bytes += size;
		}
		*records += head.count;
		++*rrsets;
	}
	return 0;
}

/* One allocation: the entry, its RRsets, where the records end, the name, the records. */
static struct np_entry *entry_new(const uint8_t *name, int name_len, const uint8_t *data, int len)
{
	uint32_t rrsets, records, bytes;
	uint64_t size;
	struct np_entry *e;
	uint32_t *ends;
	uint8_t *body;

	if (measure(data, len, &rrsets, &records, &bytes))
		return NULL;
	size = sizeof(*e) + rrsets * sizeof(e->rrset[0]) + records * sizeof(*ends) + bytes + (uint64_t)name_len;
	e = size > UINT32_MAX ? NULL : calloc(1, size);
	if (!e)
		return NULL;
	ends = (uint32_t *)(e->rrset + rrsets);
	body = memcpy(ends + records, name, (size_t)name_len);
	e->name = body;
	e->name_len = (uint8_t)name_len;
	e->size = (uint32_t)size;
	e->rrsets = (uint16_t)rrsets;
	body += name_len;
	for (uint32_t i = 0; i < rrsets; i++) {
		struct np_rrset *set = &e->rrset[i];
		struct put head;

		memcpy(&head, data, sizeof(head));
		data += sizeof(head);
		*set = (struct np_rrset){ .type = head.type, .rotates = head.rotates, .count = head.count };
		set->ends = ends;
		set->data = body;
		ends += head.count;
		for (uint32_t k = 0; k < head.count; k++) {
			uint16_t one;

			memcpy(&one, data, 2);
			memcpy(body, data + 2, one);
			data += 2 + one;
			body += one;
			set->size += one;
			set->ends[k] = set->size;
		}
		e->to_python |= head.type == NP_TYPE_CNAME;
	}
	return e;
}

/* In no list yet. */
static struct np_entry *entry_copy(const struct np_entry *e)
{
	struct np_entry *copy = calloc(1, e->size);
	const uint8_t *from = (const uint8_t *)e;
	uint8_t *to = (uint8_t *)copy;
	size_t fixed = sizeof(*e) + e->rrsets * sizeof(e->rrset[0]);

	if (!copy)
		return NULL;
	copy->hash = e->hash;
	copy->name_len = e->name_len;
	copy->to_python = e->to_python;
	copy->rrsets = e->rrsets;
	copy->size = e->size;
	copy->name = to + (e->name - from);
	for (int i = 0; i < e->rrsets; i++) {
		const struct np_rrset *set = &e->rrset[i];

		copy->rrset[i] = (struct np_rrset){
			.type = set->type, .rotates = set->rotates, .count = set->count, .size = set->size,
			.ends = (uint32_t *)(to + ((const uint8_t *)set->ends - from)),
			.data = to + (set->data - from),
			.turn = atomic_load_explicit(&set->turn, memory_order_relaxed), /* readers change it */
		};
	}
	memcpy(to + fixed, from + fixed, e->size - fixed);
	return copy;
}

/* An entry that nobody finds any more; note is the memory to remember it by. */
static void let_go(struct np_table *t, struct gone *note, struct np_entry *e)
{
	t->bytes -= e->size;
	note->what = e;
	note->next = t->gone;
	t->gone = note;
}

/* Twice the buckets, with copies of the entries: each can be in one list only. */
static int grow(struct np_table *t)
{
	struct buckets *old = t->buckets, *new = buckets_new((old->mask + 1) * 2);

	if (!new)
		return -ENOMEM;
	for (uint64_t i = 0; i <= old->mask; i++)
		for (struct np_entry *e = old->head[i]; e; e = e->next) {
			struct np_entry *_Atomic *head = &new->head[e->hash & new->mask];
			struct np_entry *copy = entry_copy(e);

			if (!copy) {
				buckets_free(new);
				return -ENOMEM;
			}
			copy->next = *head;
			*head = copy;
		}
	atomic_store_explicit(&t->buckets, new, memory_order_release);
	np_readers_wait(&t->readers);
	buckets_free(old);
	return 0;
}

/* The link that leads to the entry of a name, or the end of its bucket. */
static struct np_entry *_Atomic *place_of(struct np_table *t, uint64_t hash, const uint8_t *name, int len)
{
	struct np_entry *_Atomic *at = &t->buckets->head[hash & t->buckets->mask];

	for (struct np_entry *e; (e = *at); at = &e->next)
		if (e->hash == hash && e->name_len == len && !memcmp(e->name, name, (size_t)len))
			break;
	return at;
}

/* Whoever replaces a set goes on with its turn. */
static void keep_turns(struct np_entry *new, const struct np_entry *old)
{
	for (int i = 0; i < new->rrsets; i++) {
		const struct np_rrset *before = np_entry_pick(old, new->rrset[i].type);

		if (before)
			new->rrset[i].turn = atomic_load(&before->turn);
	}
}

/* A name comes, or its records change. data: per RRset, lowest type first, a struct put and for each
 * record 16 bits of length and its bytes, all in the machine's order; none: the name only exists. */
int np_table_put(struct np_table *t, const uint8_t *name, int name_len, const uint8_t *data, int len)
{
	struct np_entry *_Atomic *at;
	struct np_entry *e, *old;
	struct gone *note;
	int result;

	if (name_len < 1 || name_len > NP_NAME_MAX)
		return -EINVAL;
	e = entry_new(name, name_len, data, len);
	if (!e)
		return -EINVAL;
	note = malloc(sizeof(*note));
	result = !note ? -ENOMEM : t->names > t->buckets->mask / 2 ? grow(t) : 0;
	if (result)
		goto fail;
	e->hash = np_hash(t->key, name, name_len);
	at = place_of(t, e->hash, name, name_len);
	old = *at;
	if (old)
		keep_turns(e, old);
	e->next = old ? old->next : NULL;
	t->bytes += e->size;
	t->names += !old;
	atomic_store_explicit(at, e, memory_order_release);
	if (old)
		let_go(t, note, old);
	else
		free(note);
	return 0;
fail:
	free(note);
	free(e);
	return result;
}

/* A name goes; 0 when it was not there either. */
int np_table_remove(struct np_table *t, const uint8_t *name, int name_len)
{
	struct np_entry *_Atomic *at = place_of(t, np_hash(t->key, name, name_len), name, name_len);
	struct np_entry *old = *at;
	struct gone *note;

	if (!old)
		return 0;
	note = malloc(sizeof(*note));
	if (!note)
		return -ENOMEM;
	t->names--;
	atomic_store_explicit(at, old->next, memory_order_release);
	let_go(t, note, old);
	return 0;
}

/* Wait until nobody can see what was replaced or removed, and free it. */
void np_table_commit(struct np_table *t)
{
	np_readers_wait(&t->readers);
	collect(t);
}

void np_table_sync(struct np_table *t, int synced)
{
	atomic_store(&t->zone.synced, synced);
}

void np_table_divert(struct np_table *t, int what)
{
	atomic_store(&t->zone.to_python, what);
}

uint64_t np_table_bytes(const struct np_table *t)
{
	return t->bytes + (t->buckets->mask + 1) * sizeof(t->buckets->head[0]);
}

uint64_t np_table_names(const struct np_table *t)
{
	return t->names;
}

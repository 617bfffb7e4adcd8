/* The names: a hash table that one writer changes under the readers' eyes.
 *
 * A bucket is a list of nodes, each with an entry that never changes. Putting links a new node in with
 * one store, removing links one out with one store: a reader sees the old list or the new one. What
 * was unlinked waits in `gone` until np_table_commit has seen all readers pass.
 *
 * The table is not one state in time across names (Python's view is); each name is.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "dns.h"

enum { BUCKETS_MIN = 64 };

struct node {
	struct node *_Atomic next;
	struct np_entry *entry;
};

struct buckets {
	uint64_t mask;
	struct node *_Atomic head[];
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

struct np_table *np_table_new(const uint8_t *apex, int len)
{
	struct np_table *t;

	if (len < 1 || len > NP_NAME_MAX)
		return NULL;
	t = aligned_alloc(64, (sizeof(*t) + 63) / 64 * 64);
	if (!t)
		return NULL;
	memset(t, 0, sizeof(*t));
	t->readers.epoch = 1;
	memcpy(t->zone.apex, apex, (size_t)len);
	t->zone.apex_len = len;
	t->buckets = buckets_new(BUCKETS_MIN);
	if (!t->buckets || getrandom(t->key, sizeof(t->key), 0) != sizeof(t->key)) {
		free(t->buckets);
		free(t);
		return NULL;
	}
	return t;
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
	for (uint64_t i = 0; i <= t->buckets->mask; i++) {
		struct node *next, *n = t->buckets->head[i];

		for (; n; n = next) {
			next = n->next;
			free(n->entry);
			free(n);
		}
	}
	free(t->buckets);
	collect(t);
	free(t);
}

/* --- readers -------------------------------------------------------------------------------- */

const struct np_entry *np_table_find(const struct np_table *t, const uint8_t *name, int len)
{
	uint64_t hash = np_hash(t->key, name, len);
	const struct buckets *b = atomic_load_explicit(&t->buckets, memory_order_acquire);
	const struct node *n = atomic_load_explicit(&b->head[hash & b->mask], memory_order_acquire);

	for (; n; n = atomic_load_explicit(&n->next, memory_order_acquire)) {
		const struct np_entry *e = n->entry;

		if (e->hash == hash && e->name_len == len && !memcmp(e->name, name, (size_t)len))
			return e;
	}
	return NULL;
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

/* One allocation: the entry, its RRsets, where the records end, the records, the name. */
static struct np_entry *entry_new(const uint8_t *name, int name_len, const uint8_t *data, int len, uint64_t *size)
{
	uint32_t rrsets, records, bytes;
	struct np_entry *e;
	uint32_t *ends;
	uint8_t *body;

	if (measure(data, len, &rrsets, &records, &bytes))
		return NULL;
	*size = sizeof(*e) + rrsets * sizeof(e->rrset[0]) + records * sizeof(*ends) + bytes + (uint64_t)name_len;
	e = calloc(1, *size);
	if (!e)
		return NULL;
	ends = (uint32_t *)(e->rrset + rrsets);
	body = (uint8_t *)(ends + records);
	e->rrsets = (uint16_t)rrsets;
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
	memcpy(body, name, (size_t)name_len);
	e->name = body;
	e->name_len = (uint8_t)name_len;
	return e;
}

static void let_go(struct np_table *t, struct gone **slot, void *what)
{
	struct gone *g = *slot;

	*slot = NULL;
	g->what = what;
	g->next = t->gone;
	t->gone = g;
}

/* Twice the buckets, with nodes of their own for the same entries. */
static int grow(struct np_table *t)
{
	struct buckets *old = t->buckets, *new = buckets_new((old->mask + 1) * 2);
	int result = new ? 0 : -ENOMEM;

	for (uint64_t i = 0; !result && i <= old->mask; i++)
		for (struct node *n = old->head[i]; n && !result; n = n->next) {
			struct node *twin = malloc(sizeof(*twin));
			struct node *_Atomic *head = &new->head[n->entry->hash & new->mask];

			if (!twin) {
				result = -ENOMEM;
				break;
			}
			twin->entry = n->entry;
			twin->next = *head;
			*head = twin;
		}
	if (!result)
		atomic_store_explicit(&t->buckets, new, memory_order_release);
	np_readers_wait(&t->readers); /* then the old nodes are nobody's, or the new ones never were seen */
	for (struct buckets *b = result ? new : old; b; b = NULL) {
		for (uint64_t i = 0; i <= b->mask; i++)
			for (struct node *next, *n = b->head[i]; n; n = next) {
				next = n->next;
				free(n);
			}
		free(b);
	}
	return result;
}

/* The link that leads to the node of a name, or the end of its bucket. */
static struct node *_Atomic *place_of(struct np_table *t, uint64_t hash, const uint8_t *name, int len)
{
	struct node *_Atomic *at = &t->buckets->head[hash & t->buckets->mask];

	for (struct node *n; (n = *at); at = &n->next)
		if (n->entry->hash == hash && n->entry->name_len == len &&
		    !memcmp(n->entry->name, name, (size_t)len))
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

static uint64_t size_of(const struct np_entry *e)
{
	return (uint64_t)(e->name + e->name_len - (const uint8_t *)e);
}

/* A name comes, or its records change. data: per RRset, lowest type first, a struct put and for each
 * record 16 bits of length and its bytes, all in the machine's order; none: the name only exists. */
int np_table_put(struct np_table *t, const uint8_t *name, int name_len, const uint8_t *data, int len)
{
	struct gone *slots[2] = { malloc(sizeof(struct gone)), malloc(sizeof(struct gone)) };
	struct node *n = malloc(sizeof(*n)), *old;
	struct np_entry *e = NULL;
	struct node *_Atomic *at;
	uint64_t size = 0;
	int result = -EINVAL;

	if (name_len < 1 || name_len > NP_NAME_MAX)
		goto out;
	e = entry_new(name, name_len, data, len, &size);
	if (!e)
		goto out;
	result = -ENOMEM;
	if (!slots[0] || !slots[1] || !n)
		goto out;
	e->hash = np_hash(t->key, name, name_len);
	if (t->names > t->buckets->mask && (result = grow(t)))
		goto out;
	at = place_of(t, e->hash, name, name_len);
	old = *at;
	if (old)
		keep_turns(e, old->entry);
	n->entry = e;
	n->next = old ? old->next : NULL;
	atomic_store_explicit(at, n, memory_order_release);
	t->names += !old;
	t->bytes += size;
	if (old) {
		t->bytes -= size_of(old->entry);
		let_go(t, &slots[0], old->entry);
		let_go(t, &slots[1], old);
	}
	n = NULL;
	e = NULL;
	result = 0;
out:
	free(e);
	free(n);
	free(slots[1]);
	free(slots[0]);
	return result;
}

/* A name goes; 0 when it was not there either. */
int np_table_remove(struct np_table *t, const uint8_t *name, int name_len)
{
	struct node *_Atomic *at = place_of(t, np_hash(t->key, name, name_len), name, name_len);
	struct gone *slots[2];
	struct node *old = *at;

	if (!old)
		return 0;
	slots[0] = malloc(sizeof(struct gone));
	slots[1] = malloc(sizeof(struct gone));
	if (!slots[0] || !slots[1]) {
		free(slots[0]);
		free(slots[1]);
		return -ENOMEM;
	}
	atomic_store_explicit(at, old->next, memory_order_release);
	t->names--;
	t->bytes -= size_of(old->entry);
	let_go(t, &slots[0], old->entry);
	let_go(t, &slots[1], old);
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
	return t->bytes + (t->names + t->buckets->mask + 1) * sizeof(struct node);
}

uint64_t np_table_names(const struct np_table *t)
{
	return t->names;
}

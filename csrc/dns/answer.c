/* What to say to a packet, as netplane/dns/answer.py says it: same order of questions, same bytes. */
#include <errno.h>
#include <string.h>

#include "dns.h"

struct reply {
	uint8_t *out;
	int used, room; /* of answers and what follows; the header and question are there already */
	int rcode, flags;
	int answers, authority, additional;
};

static int header_only(const uint8_t *packet, uint8_t *out, int rcode)
{
	int kept = np_get16(packet + 2) & (NP_OPCODE | NP_RD);

	memset(out, 0, NP_HEADER);
	memcpy(out, packet, 2);
	np_put16(out + 2, (unsigned int)(NP_QR | kept | rcode));
	return NP_HEADER;
}

static int limit_of(const struct np_query *q, int size)
{
	int limit = NP_UDP_PLAIN;

	if (q->has_edns && q->edns_size > limit)
		limit = q->edns_size < NP_UDP_EDNS ? q->edns_size : NP_UDP_EDNS;
	return limit < size ? limit : size;
}

static int fits(const struct reply *r, uint32_t size)
{
	return size <= (uint32_t)(r->room - r->used);
}

static void append(struct reply *r, const void *bytes, uint32_t size)
{
	memcpy(r->out + r->used, bytes, size);
	r->used += (int)size;
}

/* The records from the one whose turn it is, round; as many as fit. */
static void append_answers(struct reply *r, const struct np_rrset *set, uint32_t first)
{
	int whole = fits(r, set->size);

	for (uint32_t i = 0; i < set->count; i++) {
		uint32_t k = first + i < set->count ? first + i : first + i - set->count;
		uint32_t start = k ? set->ends[k - 1] : 0, size = set->ends[k] - start;

		if (!whole && !fits(r, size))
			break;
		append(r, set->data + start, size);
		r->answers++;
	}
	if (!whole)
		r->flags |= NP_TC;
}

/* An address of the host that an SRV or NS record names, under the host's own name. 0: it was full. */
static int append_address(struct reply *r, const uint8_t *host, int host_len, const uint8_t *record, uint32_t size)
{
	if (!fits(r, (uint32_t)host_len + size - 2))
		return 0;
	append(r, host, (uint32_t)host_len);
	append(r, record + 2, size - 2);
	r->additional++;
	return 1;
}

static void append_hosts(struct reply *r, const struct np_table *t, const struct np_rrset *set, uint32_t first)
{
	static const int families[] = { NP_TYPE_A, NP_TYPE_AAAA };
	int at = set->type == NP_TYPE_SRV ? 18 : 12; /* pointer, type, class, TTL, length; SRV: 3 numbers */

	for (uint32_t i = 0; i < set->count; i++) {
		uint32_t k = (first + i) % set->count, start = k ? set->ends[k - 1] : 0;
		const uint8_t *host = set->data + start + at;
		int host_len = (int)(set->ends[k] - start) - at;
		const struct np_entry *e = np_table_find(t, host, host_len);

		for (int f = 0; e && f < 2; f++) {
			const struct np_rrset *found = np_entry_pick(e, families[f]);

			for (uint32_t n = 0; found && n < found->count; n++) {
				uint32_t from = n ? found->ends[n - 1] : 0;

				if (!append_address(r, host, host_len, found->data + from, found->ends[n] - from))
					return;
			}
		}
	}
}

/* The zone's SOA with a denial: how long it may be kept (RFC 2308 3). */
static void append_soa(struct reply *r, const struct np_table *t, int offset)
{
	const struct np_zone *zone = np_table_zone(t);
	const struct np_entry *e = np_table_find(t, zone->apex, zone->apex_len);
	const struct np_rrset *soa = e ? np_entry_pick(e, NP_TYPE_SOA) : NULL;
	uint8_t owner[2];

	if (!soa || !soa->count)
		return;
	if (!fits(r, soa->ends[0])) {
		r->flags |= NP_TC;
		return;
	}
	np_put16(owner, 0xc000u | (unsigned int)(NP_HEADER + (offset > 0 ? offset : 0)));
	append(r, owner, 2);
	append(r, soa->data + 2, soa->ends[0] - 2);
	r->authority = 1;
}

/* Whose name it is: an NP_ZONE_… */
int np_query_zone(const struct np_query *q)
{
	static const uint8_t v4[] = "\7in-addr\4arpa", v6[] = "\3ip6\4arpa";

	if (q->state != NP_ASK)
		return NP_ZONE_OTHER;
	if (q->offset >= 0)
		return NP_ZONE_CLUSTER;
	if (np_query_offset(q, v4, sizeof(v4)) >= 0)
		return NP_ZONE_V4;
	return np_query_offset(q, v6, sizeof(v6)) >= 0 ? NP_ZONE_V6 : NP_ZONE_OTHER;
}

/* The index into label_at of the label at this offset. */
static int label_of(const struct np_query *q, int offset)
{
	int i = 0;

	while (q->label_at[i] != offset)
		i++;
	return i;
}

/* Is a name that the table does not have, offset bytes above the apex, one that Python may make up? */
static int is_computed(const struct np_query *q, const struct np_table *t, int offset)
{
	int what = atomic_load_explicit(&np_table_zone(t)->to_python, memory_order_relaxed);
	int above = label_of(q, offset); /* labels above the apex; never 0 while the apex exists */
	const uint8_t *top;

	if (!what)
		return 0;
	if (what & NP_DIVERT_DENIALS || !above)
		return 1;
	top = q->name + q->label_at[above - 1];
	if (!memcmp(top, "\3pod", 4))
		return what & NP_DIVERT_PODS;
	if (!(what & NP_DIVERT_ENDPOINTS) || above < 4 || memcmp(top, "\3svc", 4))
		return 0;
	return np_table_find(t, q->name + q->label_at[1], q->name_len - q->label_at[1]) != NULL;
}

static int local(struct reply *r, const struct np_query *q, const struct np_table *t)
{
	int offset = q->offset;
	const struct np_entry *e = np_table_look(t, q->hash, q->name, q->name_len);
	const struct np_rrset *set;
	uint32_t first;

	if (offset < 0 && !e)
		return NP_PYTHON; /* not ours: forwarded, or refused */
	if (!e && is_computed(q, t, offset))
		return NP_PYTHON;
	if (e && e->to_python)
		return NP_PYTHON;
	r->flags |= NP_AA;
	set = e ? np_entry_pick(e, q->type) : NULL;
	if (!set || !set->count) {
		r->rcode = e ? NP_NOERROR : NP_NXDOMAIN;
		append_soa(r, t, offset);
		return 0;
	}
	first = 0;
	if (set->rotates) /* the turn is the one thing in an entry that readers change */
		first = atomic_fetch_add_explicit(&((struct np_rrset *)set)->turn, 1, memory_order_relaxed) % set->count;
	append_answers(r, set, first);
	if (!(r->flags & NP_TC) && (q->type == NP_TYPE_SRV || q->type == NP_TYPE_NS))
		append_hosts(r, t, set, first);
	return 0;
}

static int decide(struct reply *r, const struct np_query *q, const struct np_table *t)
{
	const struct np_zone *zone = np_table_zone(t);

	if (q->has_edns && q->edns_version) {
		r->rcode = NP_BADVERS;
		return 0;
	}
	if (q->class != NP_CLASS_IN || q->type == NP_TYPE_AXFR || q->type == NP_TYPE_IXFR) {
		r->rcode = NP_REFUSED;
		return 0;
	}
	if (!atomic_load_explicit(&zone->synced, memory_order_relaxed) && np_query_zone(q) != NP_ZONE_OTHER) {
		r->rcode = NP_SERVFAIL;
		return 0;
	}
	return local(r, q, t);
}

static void append_opt(struct reply *r, const struct np_query *q)
{
	uint8_t opt[NP_OPT_SIZE] = { 0 };

	np_put16(opt + 1, NP_TYPE_OPT);
	np_put16(opt + 3, NP_UDP_EDNS);
	opt[5] = (uint8_t)(r->rcode >> 4);
	opt[7] = (uint8_t)(q->dnssec << 7);
	r->room += NP_OPT_SIZE;
	append(r, opt, NP_OPT_SIZE);
	r->additional++;
}

/* Step 1: what is asked; its bucket is on its way. */
void np_answer_begin(const struct np_table *t, struct np_query *q, const uint8_t *packet, int len)
{
	const struct np_zone *zone = np_table_zone(t);

	q->packet = packet;
	q->state = NP_SILENT;
	if (len < NP_HEADER || packet[2] & 0x80)
		return;
	q->state = NP_REFUSE;
	q->rcode = packet[2] & 0x78 ? NP_NOTIMP : NP_FORMERR;
	if (q->rcode == NP_NOTIMP || np_query_parse(q, packet, len))
		return;
	q->state = NP_ASK;
	q->offset = np_query_offset(q, zone->apex, zone->apex_len);
	q->hash = np_table_hash(t, q->name, q->name_len);
	np_table_send_bucket(t, q->hash);
}

/* Step 2: the first entry of the bucket is on its way. */
void np_answer_fetch(const struct np_table *t, const struct np_query *q)
{
	if (q->state == NP_ASK)
		np_table_send_entry(t, q->hash);
}

/* Step 3: the response in out: its length; 0: silence; NP_PYTHON: not ours; -ENOSPC: size is below 512.
 * The caller is online (np_reader_online) since step 1. */
int np_answer_end(const struct np_table *t, const struct np_query *q, uint8_t *out, int size)
{
	struct reply r = { .out = out, .flags = NP_RA };
	int result;

	if (q->state == NP_SILENT)
		return 0;
	if (size < NP_UDP_PLAIN)
		return -ENOSPC;
	if (q->state == NP_REFUSE)
		return header_only(q->packet, out, q->rcode);
	if (atomic_load_explicit(&np_table_zone(t)->to_python, memory_order_relaxed) & NP_DIVERT_EVERYTHING)
		return NP_PYTHON;
	r.used = NP_HEADER + q->question_len;
	r.room = limit_of(q, size) - (q->has_edns ? NP_OPT_SIZE : 0);
	result = decide(&r, q, t);
	if (result)
		return result;
	memcpy(out + NP_HEADER, q->packet + NP_HEADER, (size_t)q->question_len);
	if (q->has_edns)
		append_opt(&r, q);
	memcpy(out, q->packet, 2);
	np_put16(out + 2, (unsigned int)(NP_QR | (q->flags & (NP_OPCODE | NP_RD | NP_CD)) | r.flags | (r.rcode & 15)));
	np_put16(out + 4, 1);
	np_put16(out + 6, (unsigned int)r.answers);
	np_put16(out + 8, (unsigned int)r.authority);
	np_put16(out + 10, (unsigned int)r.additional);
	return r.used;
}

/* One packet by itself; as np_answer_end. */
int np_answer(const struct np_table *t, const uint8_t *packet, int len, uint8_t *out, int size)
{
	struct np_query q;

	np_answer_begin(t, &q, packet, len);
	return np_answer_end(t, &q, out, size);
}

/* The same, for a caller that is no reader yet. */
int np_answer_alone(struct np_table *t, const uint8_t *packet, int len, uint8_t *out, int size)
{
	struct np_readers *all = np_table_readers(t);
	struct np_reader *me = np_reader_join(all);
	int result;

	if (!me)
		return -EBUSY;
	np_reader_online(all, me);
	result = np_answer(t, packet, len, out, size);
	np_reader_leave(me);
	return result;
}

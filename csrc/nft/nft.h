/* Elements of nftables sets as one batch of netlink messages. */
#ifndef NP_NFT_H
#define NP_NFT_H

#include <stddef.h>
#include <stdint.h>

/* cdef */
/* A batch under construction. Zeroed, it is empty; np_nft_free gives its memory back. */
struct np_nft_batch {
	char *data;
	size_t used, size;
	uint32_t seq;
};

int np_nft_begin(struct np_nft_batch *b);
int np_nft_elements(struct np_nft_batch *b, int remove, const char *table, const char *set,
		    const char *layout, const char *text, size_t len);
int np_nft_commit(struct np_nft_batch *b, int fd);
void np_nft_free(struct np_nft_batch *b);
/* cdef */

struct np_field {
	const char *at;
	size_t len;
};

/* One field of an element in the words of a fact, as the kernel keeps it: a multiple of four bytes.
 * Returns the length, or -EINVAL for what is not of this type. */
int np_nft_field(char type, const struct np_field *f, unsigned char *out);

#endif

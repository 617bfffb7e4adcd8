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
int np_nft_list(struct np_nft_batch *b, int fd, const char *table, const char *set, const char *layout);
int np_nft_get(struct np_nft_batch *b, int fd, const char *table, const char *set, const char *layout,
	       const char *text, size_t len);
void np_nft_free(struct np_nft_batch *b);
/* cdef */

/* Room for so many bytes more. Returns 0 or -ENOMEM. */
int np_nft_reserve(struct np_nft_batch *b, size_t more);
int np_nft_ask(struct np_nft_batch *b, const char *table, const char *set);
int np_nft_ask_for(struct np_nft_batch *b, const char *table, const char *set, const char *layout,
		   const char *text, size_t len);

struct np_field {
	const char *at;
	size_t len;
};

/* One field of an element in the words of a fact, as the kernel keeps it: a multiple of four bytes.
 * Returns the length, or -EINVAL for what is not of this type. */
int np_nft_field(char type, const struct np_field *f, unsigned char *out);

/* The way back: the words of a part of which len bytes are there at least. Returns 0 or -EINVAL. */
int np_nft_words(char type, const unsigned char *at, size_t len, char *out, size_t size);

#endif

/* The texts of gRPC's headers. Pure. */
#include <errno.h>
#include <string.h>

#include "inner.h"

/* "grpc-timeout": one to eight digits and a unit. */
int np_text_timeout(const uint8_t *text, size_t size, uint64_t *ns)
{
	static const char units[] = "HMSmun";
	static const uint64_t each[] = { 3600000000000, 60000000000, 1000000000, 1000000, 1000, 1 };
	const char *unit;
	uint64_t number = 0;

	if (size < 2 || size > 9 || !text[size - 1])
		return -EINVAL;
	unit = strchr(units, text[size - 1]);
	if (!unit)
		return -EINVAL;
	for (size_t i = 0; i < size - 1; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -EINVAL;
		number = number * 10 + text[i] - '0';
	}
	*ns = number * each[unit - units]; /* at most 3.6e20: */
	if (number > UINT64_MAX / 4 / each[unit - units])
		*ns = UINT64_MAX / 4;
	return 0;
}

/* "grpc-message": what is not printable ASCII, and "%", as %XX. What has no room is left away, whole
 * characters of UTF-8 at a time. How many bytes it is. */
size_t np_text_escape(const uint8_t *text, size_t size, char *out, size_t room)
{
	static const char hex[] = "0123456789ABCDEF";
	size_t at = 0, whole = 0;

	for (size_t i = 0; i < size; i++) {
		int plain = text[i] >= ' ' && text[i] <= '~' && text[i] != '%';

		if ((text[i] & 0xc0) != 0x80)
			whole = at;
		if (at + (plain ? 1 : 3) > room)
			return whole;
		if (plain) {
			out[at++] = (char)text[i];
			continue;
		}
		out[at++] = '%';
		out[at++] = hex[text[i] >> 4];
		out[at++] = hex[text[i] & 15];
	}
	return at;
}

/* "application/grpc", "application/grpc+proto", "application/grpc;charset=…" */
int np_text_is_grpc(const uint8_t *text, size_t size)
{
	static const char type[] = "application/grpc";
	size_t len = sizeof(type) - 1;

	return size >= len && !memcmp(text, type, len) && (size == len || text[len] == '+' || text[len] == ';');
}

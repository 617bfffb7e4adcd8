/* What goes to stdout: the CNI specification puts results and errors there alike. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cni.h"

#define NP_VERSIONS "\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\""
#define NP_VERSION_NEWEST "1.1.0"

int np_version_known(const char *version)
{
	char quoted[40];

	snprintf(quoted, sizeof(quoted), "\"%s\"", version);
	return *version && strstr(NP_VERSIONS, quoted) != NULL;
}

int np_reply_write(const char *text, size_t size)
{
	ssize_t some;

	while (size) {
		some = write(STDOUT_FILENO, text, size);
		if (some < 0 && errno != EINTR)
			return -errno;
		text += some > 0 ? some : 0;
		size -= some > 0 ? (size_t)some : 0;
	}
	return 0;
}

static int add_text(struct np_buffer *out, const char *text)
{
	return np_buffer_add(out, text, strlen(text));
}

/* {"cniVersion", "code", "msg", "details"}; returns the exit status, 1. */
int np_reply_error(const char *version, int code, const char *message, const char *details)
{
	struct np_buffer out = { .max = NP_ANSWER_MAX };
	char number[32];

	snprintf(number, sizeof(number), ",\"code\":%d,\"msg\":", code);
	if (!add_text(&out, "{\"cniVersion\":") &&
	    !np_json_quote(&out, *version ? version : NP_VERSION_NEWEST) &&
	    !add_text(&out, number) && !np_json_quote(&out, message) &&
	    !add_text(&out, ",\"details\":") && !np_json_quote(&out, details) && !add_text(&out, "}\n"))
		np_reply_write(out.data, out.size);
	np_buffer_free(&out);
	return 1;
}

/* VERSION needs no agent: what this program speaks is what it was built with. */
int np_reply_version(const char *version)
{
	struct np_buffer out = { .max = NP_ANSWER_MAX };
	int status = 1;

	if (!add_text(&out, "{\"cniVersion\":") &&
	    !np_json_quote(&out, *version ? version : NP_VERSION_NEWEST) &&
	    !add_text(&out, ",\"supportedVersions\":[" NP_VERSIONS "]}\n"))
		status = np_reply_write(out.data, out.size) ? 1 : 0;
	np_buffer_free(&out);
	return status;
}

/* The CNI binary: a thin client of the agent. Five nouns, one file each:
 *   json     finds one top-level string of a configuration, and writes strings
 *   buffer   bytes that grow to a bound
 *   agent    one request over the agent's unix socket, within a deadline
 *   standalone  hands over to the program that needs no agent
 *   reply    what goes to stdout: the agent's words, or a CNI error of our own
 * Functions return 0 or more, or -errno. Nothing here decides anything about networks.
 */
#ifndef NP_CNI_H
#define NP_CNI_H

#include <stddef.h>
#include <time.h>

#define NP_SOCKET_DEFAULT "/run/netplane/cni.sock"
#define NP_FRAME_TAG "netplane-cni/1"
#define NP_CONFIG_MAX (4u << 20)
#define NP_ANSWER_MAX (16u << 20)
#define NP_TIMEOUT_DEFAULT 30

/* CNI specification 1.1.0, "Error"; 11 asks the runtime to come again, 50 is STATUS's. */
enum np_code {
	NP_CODE_VERSION = 1,
	NP_CODE_ENVIRONMENT = 4,
	NP_CODE_IO = 5,
	NP_CODE_DECODE = 6,
	NP_CODE_CONFIG = 7,
	NP_CODE_LATER = 11,
	NP_CODE_UNAVAILABLE = 50,
};

struct np_buffer {
	char *data;
	size_t size, room, max;
};

int np_buffer_add(struct np_buffer *buffer, const void *data, size_t size);
int np_buffer_netstring(struct np_buffer *buffer, const void *data, size_t size);
int np_buffer_read(struct np_buffer *buffer, int fd);
void np_buffer_free(struct np_buffer *buffer);

/* Copies the string at top-level `key` to out, NUL-terminated. Returns 1 found, 0 absent,
 * -EINVAL when the text is not one JSON object, -EPROTOTYPE when the value is not a string,
 * -ENAMETOOLONG when it does not fit. */
int np_json_string(const char *text, size_t size, const char *key, char *out, size_t room);
int np_json_quote(struct np_buffer *out, const char *text);

struct np_answer {
	int status;
	const char *text; /* into the buffer that np_agent_ask filled */
	size_t size;
};

int np_agent_ask(const char *path, const struct np_buffer *request, time_t seconds,
		 struct np_buffer *raw, struct np_answer *answer);

#define NP_STANDALONE "netplane-standalone"
int np_standalone_run(const struct np_buffer *config);

/* Whether this program speaks that version of the specification. */
int np_version_known(const char *version);
int np_reply_write(const char *text, size_t size);
int np_reply_error(const char *version, int code, const char *message, const char *details);
int np_reply_version(const char *version);

#endif

/* netplane, the CNI plugin: hands the runtime's request to the node's agent and prints its answer.
 *
 * Rule 1: it decides nothing; only VERSION and what concerns the agent's absence is answered here.
 * Rule 2: where nobody listens, a configuration that can do without an agent is handed to the program
 *         beside this one (standalone.c).
 * Rule 3: it never hangs: no agent, or none that answers in time, is CNI error 11 (50 for STATUS).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cni.h"

struct np_request {
	const char *command;
	struct np_buffer config;
	char version[32];
	char socket[256];
	long timeout; /* seconds */
};

static const char *environment(const char *name)
{
	const char *value = getenv(name);

	return value ? value : "";
}

/* The frame of a request; the order is netplane/cni/request.py's. */
static int request_frame(const struct np_request *request, struct np_buffer *frame)
{
	static const char *const names[] = { "CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS",
					     "CNI_IFNAME", "CNI_ARGS", "CNI_PATH" };
	struct np_buffer fields = { .max = 2 * NP_CONFIG_MAX };
	int err = np_buffer_netstring(&fields, NP_FRAME_TAG, strlen(NP_FRAME_TAG));

	for (size_t i = 0; !err && i < sizeof(names) / sizeof(*names); i++) {
		const char *value = environment(names[i]);

		err = np_buffer_netstring(&fields, value, strlen(value));
	}
	if (!err)
		err = np_buffer_netstring(&fields, request->config.data, request->config.size);
	if (!err)
		err = np_buffer_netstring(frame, fields.data, fields.size);
	np_buffer_free(&fields);
	return err;
}

/* Reads stdin and what this program needs of it. Returns 0, or the exit status after a reply. */
static int request_read(struct np_request *request)
{
	char details[64];
	int err = np_buffer_read(&request->config, STDIN_FILENO);

	if (err == -EMSGSIZE)
		return np_reply_error("", NP_CODE_CONFIG, "the network configuration on stdin is too long",
				      "at most 4 MiB are read");
	if (err)
		return np_reply_error("", NP_CODE_IO, "cannot read the network configuration from stdin",
				      strerror(-err));
	if (np_json_string(request->config.data, request->config.size, "cniVersion", request->version,
			   sizeof(request->version)) < 0 && !np_version_known(request->version))
		request->version[0] = 0; /* else it stands before what is wrong, and is answered in */
	if (!strcmp(request->command, "VERSION"))
		return 0; /* whatever stdin holds, or nothing: it is how a user asks what this program is */
	err = np_json_string(request->config.data, request->config.size, "socket", request->socket,
			     sizeof(request->socket));
	if (!err)
		strcpy(request->socket, NP_SOCKET_DEFAULT);
	if (err == -EINVAL) {
		snprintf(details, sizeof(details), "%zu bytes were read", request->config.size);
		return np_reply_error(request->version, NP_CODE_DECODE,
				      "the network configuration on stdin is not a JSON object", details);
	}
	if (err < 0)
		return np_reply_error(request->version, NP_CODE_CONFIG,
				      "socket: must be the path of the agent's unix socket",
				      "a string of at most 107 bytes");
	return 0;
}

/* Says which socket did not answer, why, and how the agent is started. */
static int refuse(const struct np_request *request, int err, int alone)
{
	int code = strcmp(request->command, "STATUS") ? NP_CODE_LATER : NP_CODE_UNAVAILABLE;
	char message[512], details[512];

	if (err == -ENAMETOOLONG)
		return np_reply_error(request->version, NP_CODE_CONFIG,
				      "socket: a unix socket's path has at most 107 bytes", request->socket);
	if (err == -ETIMEDOUT)
		snprintf(message, sizeof(message), "the netplane agent at %s did not answer in %ld s",
			 request->socket, request->timeout);
	else if (err == -EPROTO)
		snprintf(message, sizeof(message), "what listens at %s is not a netplane agent of this version",
			 request->socket);
	else if (err == -ECONNRESET || err == -EPIPE)
		snprintf(message, sizeof(message), "the netplane agent at %s stopped before it answered",
			 request->socket);
	else
		snprintf(message, sizeof(message), "no netplane agent at %s: %s", request->socket,
			 strerror(-err));
	snprintf(details, sizeof(details),
		 "start it with: netplane agent --node NAME --run-dir %.*s (the socket is RUN_DIR/cni.sock)",
		 (int)(strrchr(request->socket, '/') ? strrchr(request->socket, '/') - request->socket : 0),
		 request->socket);
	if (alone)
		snprintf(details, sizeof(details),
			 "it cannot be done without one: %s: " NP_STANDALONE
			 " beside this program (put there by: netplane install)", strerror(-alone));
	return np_reply_error(request->version, code, message, details);
}

static int forward(const struct np_request *request)
{
	struct np_buffer frame = { .max = 3 * NP_CONFIG_MAX }, raw = { .max = NP_ANSWER_MAX };
	struct np_answer answer;
	int err = request_frame(request, &frame), status = 1, alone = 0;

	if (!err)
		err = np_agent_ask(request->socket, &frame, request->timeout, &raw, &answer);
	if (err == -ENOENT || err == -ECONNREFUSED)
		alone = np_standalone_run(&request->config);
	if (err)
		status = refuse(request, err, alone);
	else
		status = np_reply_write(answer.text, answer.size) ? 1 : answer.status;
	np_buffer_free(&raw);
	np_buffer_free(&frame);
	return status;
}

int main(void)
{
	struct np_request request = {
		.command = environment("CNI_COMMAND"),
		.config.max = NP_CONFIG_MAX,
		.timeout = atol(environment("NETPLANE_CNI_TIMEOUT")),
	};
	int status;

	if (!*request.command)
		return np_reply_error("", NP_CODE_ENVIRONMENT, "CNI_COMMAND is not set",
				      "this program is a CNI plugin: a container runtime starts it");
	if (request.timeout <= 0 || request.timeout > 86400)
		request.timeout = NP_TIMEOUT_DEFAULT;
	status = request_read(&request);
	if (!status)
		status = strcmp(request.command, "VERSION") ? forward(&request)
							    : np_reply_version(request.version);
	np_buffer_free(&request.config);
	return status;
}

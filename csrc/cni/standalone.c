/* Work without an agent: `netplane install` puts a program beside this one that does it in-process.
 *
 * It is for configurations that bring what an agent would know (ipam), or ask for it (standalone); it
 * reads our environment and the configuration on stdin, and answers as we would. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cni.h"

static int wanted(const struct np_buffer *config)
{
	char text[8];

	return np_json_string(config->data, config->size, "ipam", text, sizeof(text)) == -EPROTOTYPE ||
	       np_json_string(config->data, config->size, "standalone", text, sizeof(text)) == -EPROTOTYPE;
}

/* The configuration on stdin again: a file in memory, because a pipe would hold 64 KiB at most. */
static int stdin_again(const struct np_buffer *config)
{
	size_t sent = 0;
	int fd = memfd_create("cni-config", MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (sent < config->size) {
		ssize_t some = write(fd, config->data + sent, config->size - sent);

		if (some < 0 && errno != EINTR)
			return -errno;
		sent += some > 0 ? (size_t)some : 0;
	}
	if (lseek(fd, 0, SEEK_SET) < 0 || dup2(fd, STDIN_FILENO) < 0)
		return -errno;
	return 0;
}

/* Does not return when the work is done without an agent. 0: this configuration needs one; -errno. */
int np_standalone_run(const struct np_buffer *config)
{
	char path[PATH_MAX];
	ssize_t size = readlink("/proc/self/exe", path, sizeof(path) - sizeof(NP_STANDALONE) - 1);
	char *slash;
	int err;

	if (!wanted(config))
		return 0;
	if (size < 0)
		return -errno;
	path[size] = 0;
	slash = strrchr(path, '/');
	if (!slash)
		return -ENOENT;
	strcpy(slash + 1, NP_STANDALONE);
	if (access(path, X_OK))
		return -errno;
	err = stdin_again(config);
	if (err)
		return err;
	execl(path, path, (char *)NULL);
	return -errno;
}

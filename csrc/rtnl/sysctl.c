/* Sysctls of another network namespace: /proc/sys/net shows the namespace of the thread that opens
 * it, so the calling thread visits the namespace; cheaper than a thread of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "rtnl.h"

static int sysctl_write(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), result = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, value, strlen(value)) < 0)
		result = -errno;
	close(fd);
	return result;
}

/* pairs: n times a path and a value, each ended by NUL. errnos[i] is 0 or -errno. Returns -errno
 * when the namespace cannot be entered. */
int np_sysctl_write(const char *netns, const char *pairs, int *errnos, int n)
{
	int home, result = np_netns_visit(netns, &home);

	if (result < 0)
		return result;
	for (int i = 0; i < n; i++) {
		const char *value = pairs + strlen(pairs) + 1;

		errnos[i] = sysctl_write(pairs, value);
		pairs = value + strlen(value) + 1;
	}
	np_netns_return(home);
	return 0;
}

/* The text at path as that namespace has it. Returns its length or -errno. */
int np_sysctl_read(const char *netns, const char *path, char *out, int size)
{
	int fd, home, result = np_netns_visit(netns, &home);

	if (result < 0)
		return result;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	result = fd < 0 ? -errno : (int)read(fd, out, size);
	if (fd >= 0 && result < 0)
		result = -errno;
	if (fd >= 0)
		close(fd);
	np_netns_return(home);
	return result;
}

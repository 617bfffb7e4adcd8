/* Sysctls of another network namespace: /proc/sys/net shows the namespace of the thread that opens
 * it, so the calling thread visits the namespace; cheaper than a thread of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "rtnl.h"

#define DIRECTORY_MAX 256

/* The directory of the last path. "net" alone is looked up among the "net" of every namespace that the
 * machine's cache of names has seen, so what lies together is found by one walk. */
struct directory {
	char path[DIRECTORY_MAX];
	int fd;
};

static int directory_open(struct directory *d, const char *path, const char **base)
{
	const char *slash = strrchr(path, '/');
	size_t len = slash ? slash - path : DIRECTORY_MAX;

	*base = path;
	if (len >= DIRECTORY_MAX)
		return AT_FDCWD;
	if (strncmp(d->path, path, len) || d->path[len]) {
		if (d->fd >= 0)
			close(d->fd);
		memcpy(d->path, path, len);
		d->path[len] = '\0';
		d->fd = open(d->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	}
	if (d->fd < 0)
		return AT_FDCWD;
	*base = slash + 1;
	return d->fd;
}

static int sysctl_write(struct directory *d, const char *path, const char *value)
{
	const char *base;
	int at = directory_open(d, path, &base), result = 0;
	int fd = openat(at, base, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (write(fd, value, strlen(value)) < 0)
		result = -errno;
	close(fd);
	return result;
}

/* pairs: n times a path and a value, each ended by NUL, in the namespace where the thread is.
 * errnos[i] is 0 or -errno. */
void np_sysctl_write_here(const char *pairs, int *errnos, int n)
{
	struct directory last = { .fd = -1 };

	for (int i = 0; i < n; i++) {
		const char *value = pairs + strlen(pairs) + 1;

		errnos[i] = sysctl_write(&last, pairs, value);
		pairs = value + strlen(value) + 1;
	}
	if (last.fd >= 0)
		close(last.fd);
}

/* The same in the namespace at path. Returns -errno when it cannot be entered. */
int np_sysctl_write(const char *netns, const char *pairs, int *errnos, int n)
{
	int home, result = np_netns_visit(netns, &home);

	if (result < 0)
		return result;
	np_sysctl_write_here(pairs, errnos, n);
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

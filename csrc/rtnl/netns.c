/* Network namespaces: made at a path, entered by a thread, and made private for a process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include "rtnl.h"

struct np_netns_job {
	const char *path;
	int result;
};

/* Runs in a thread of its own, whose namespace dies with it unless the bind mount holds it. */
static void *netns_create_thread(void *arg)
{
	struct np_netns_job *job = arg;

	if (unshare(CLONE_NEWNET) < 0 ||
	    mount("/proc/thread-self/ns/net", job->path, NULL, MS_BIND, NULL) < 0)
		job->result = -errno;
	return NULL;
}

/* A new namespace bound to path (the file is made). The caller stays where it is. -errno. */
int np_netns_create(const char *path)
{
	struct np_netns_job job = { .path = path };
	pthread_t thread;
	int fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);

	if (fd < 0)
		return -errno;
	close(fd);
	job.result = -pthread_create(&thread, NULL, netns_create_thread, &job);
	if (!job.result)
		pthread_join(thread, NULL);
	if (job.result)
		unlink(path);
	return job.result;
}

/* Move the calling thread into the namespace at path, for good. -errno. */
int np_netns_enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), result = 0;

	if (fd < 0)
		return -errno;
	if (setns(fd, CLONE_NEWNET) < 0)
		result = -errno;
	close(fd);
	return result;
}

/* Enter a namespace for a moment; *home leads back. -errno: stayed. */
int np_netns_visit_fd(int fd, int *home)
{
	int result = 0;

	*home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (*home < 0)
		return -errno;
	if (setns(fd, CLONE_NEWNET) < 0) {
		result = -errno;
		close(*home);
		*home = -1;
	}
	return result;
}

/* The same with the namespace at path ("" or NULL: stay). */
int np_netns_visit(const char *path, int *home)
{
	int fd, result;

	*home = -1;
	if (!path || !*path)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	result = np_netns_visit_fd(fd, home);
	close(fd);
	return result;
}

void np_netns_return(int home)
{
	if (home < 0)
		return;
	if (setns(home, CLONE_NEWNET) < 0)
		_exit(71); /* never go on in somebody else's namespace */
	close(home);
}

/* Give the calling thread (call it before any other thread starts) a mount namespace whose changes
 * nobody else sees, and/or a network namespace of its own. -errno. */
int np_private_namespaces(int mounts, int network)
{
	if (unshare((mounts ? CLONE_NEWNS : 0) | (network ? CLONE_NEWNET : 0)) < 0)
		return -errno;
	if (mounts && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return -errno;
	return 0;
}

/* Netlink sockets in other namespaces, and batches of requests with one answer each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/netlink.h>

#include "rtnl.h"

/* A netlink socket of the namespace at path ("" or NULL: the caller's). The thread is back in its
 * own namespace on return. Returns the descriptor or -errno. */
int np_socket_open(const char *netns, int protocol)
{
	int own = -1, target = -1, fd;

	if (!netns || !*netns) {
		fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
		return fd < 0 ? -errno : fd;
	}
	own = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	if (own < 0)
		return -errno;
	target = open(netns, O_RDONLY | O_CLOEXEC);
	if (target < 0 || setns(target, CLONE_NEWNET) < 0) {
		fd = -errno;
		goto out;
	}
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	if (fd < 0)
		fd = -errno;
	if (setns(own, CLONE_NEWNET) < 0)
		_exit(71); /* never go on in somebody else's namespace */
out:
	if (target >= 0)
		close(target);
	close(own);
	return fd;
}

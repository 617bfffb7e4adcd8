/* One measurement between two network namespaces, both ends in one program, each on a CPU of its own or shared.
 *
 *   path WHAT CLIENT_NETNS SERVER_NETNS ADDRESS PORT AMOUNT CLIENT_CPU SERVER_CPU
 *
 *   connect  AMOUNT connections one after the other (reset at once)      p50 in us
 *   rr       AMOUNT times one byte there and back on one connection      p50 in us
 *   lone     the same over UDP, there and back being flows of their own: no packet of either is ever
 *            an answer                                                    p50 in us
 *   bulk     AMOUNT MiB on one connection          Gbit/s, and us of all CPUs' time a MiB (/proc/stat)
 *   flood    AMOUNT ms of datagrams of 64 bytes on an answered flow       thousands received a second
 *   alone    the same on a flow that nobody ever answers
 *
 * Both ends are put before everything else that runs (nice -20, in a scheduling group of their own). */
#define _GNU_SOURCE
#include <netdb.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ADDRESS = 4, PORT = 5, AMOUNT = 6, CPUS = 7, WARM = 100, DATAGRAM = 64, BATCH = 32, CHUNK = 1 << 16 };

static char buffer[CHUNK];
static volatile long *received; /* bytes, or datagrams, that the server had */
static char **args;

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void check(int bad, const char *what)
{
	if (!bad)
		return;
	perror(what);
	kill(0, SIGTERM);
	exit(1);
}

static void enter(const char *path, int cpu)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	cpu_set_t set;

	check(fd < 0 || setns(fd, CLONE_NEWNET), path);
	close(fd);
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
}

static void come_first(void)
{
	int fd;

	check(setsid() < 0, "setsid");
	fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, "-20", 3) < 0)
			perror("autogroup");
		close(fd);
	}
	setpriority(PRIO_PROCESS, 0, -20);
}

static int server_socket(int type, int port)
{
	struct sockaddr_in6 here = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int fd = socket(AF_INET6, type, 0), one = 1, space = 8 << 20;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (type == SOCK_DGRAM)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof(space));
	check(fd < 0 || bind(fd, (void *)&here, sizeof(here)), "bind");
	if (type == SOCK_STREAM)
		check(listen(fd, 1024), "listen");
	return fd;
}

static int client_socket(int type)
{
	struct addrinfo hint = { .ai_socktype = type, .ai_flags = AI_NUMERICHOST }, *found;
	int fd, one = 1;

	check(getaddrinfo(args[ADDRESS], args[PORT], &hint, &found), "getaddrinfo");
	fd = socket(found->ai_family, type, 0);
	check(fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen), "connect");
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	freeaddrinfo(found);
	return fd;
}

/* --- servers: until they are killed ------------------------------------------------------------ */

static void serve_stream(int listening, int echo)
{
	for (int one = 1;;) {
		int fd = accept(listening, NULL, NULL);
		ssize_t n;

		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while ((n = read(fd, buffer, sizeof(buffer))) > 0) {
			*received += n;
			if (echo && write(fd, buffer, n) < 0)
				break;
		}
		close(fd);
	}
}

/* Each datagram holds a port; the answer goes there, from a socket that was never spoken to. */
static void serve_lone(int fd)
{
	int back = server_socket(SOCK_DGRAM, 0);

	for (;;) {
		struct sockaddr_in6 from;
		socklen_t len = sizeof(from);
		ssize_t n = recvfrom(fd, buffer, 64, 0, (void *)&from, &len);

		if (n < 2)
			continue;
		memcpy(&from.sin6_port, buffer, 2);
		sendto(back, buffer, n, 0, (void *)&from, len);
	}
}

/* Single bytes are answered, everything else is counted. */
static void serve_flood(int fd)
{
	static char space[BATCH][DATAGRAM];
	struct mmsghdr m[BATCH] = { 0 };
	struct iovec iov[BATCH];

	for (;;) {
		struct sockaddr_in6 from;
		int n;

		for (int i = 0; i < BATCH; i++) {
			iov[i] = (struct iovec){ space[i], DATAGRAM };
			m[i].msg_hdr = (struct msghdr){ .msg_iov = &iov[i], .msg_iovlen = 1 };
		}
		m[0].msg_hdr.msg_name = &from;
		m[0].msg_hdr.msg_namelen = sizeof(from);
		n = recvmmsg(fd, m, BATCH, MSG_WAITFORONE, NULL);
		if (n > 0 && m[0].msg_len == 1)
			sendto(fd, "x", 1, 0, (void *)&from, m[0].msg_hdr.msg_namelen);
		else if (n > 0)
			*received += n;
	}
}

static void serve(int ready)
{
	int port = atoi(args[PORT]), stream = !strcmp(args[1], "connect") || !strcmp(args[1], "rr");
	int bulk = !strcmp(args[1], "bulk"), fd;

	enter(args[3], atoi(args[CPUS + 1]));
	fd = server_socket(stream || bulk ? SOCK_STREAM : SOCK_DGRAM, port);
	check(write(ready, "x", 1) != 1, "ready");
	if (stream || bulk)
		serve_stream(fd, stream);
	else if (!strcmp(args[1], "lone"))
		serve_lone(fd);
	else
		serve_flood(fd);
}

/* --- clients ------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double once_connect(int *unused)
{
	struct linger reset = { 1, 0 };
	double begin = now_us(), end;
	int fd = client_socket(SOCK_STREAM);

	(void)unused;
	end = now_us();
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(fd);
	return end - begin;
}

static double once_rr(int *fds)
{
	double begin = now_us();

	check(write(fds[0], buffer, 2) != 2 || read(fds[1], buffer + 64, 2) < 1, "request-response");
	return now_us() - begin;
}

static void run_p50(double (*once)(int *), int *fds)
{
	int count = atoi(args[AMOUNT]);
	double *took = calloc(count, sizeof(*took));

	for (int i = -WARM; i < count; i++)
		took[i < 0 ? 0 : i] = once(fds);
	qsort(took, count, sizeof(*took), by_size);
	printf("%.2f\n", took[count / 2]);
}

static void run_rr(void)
{
	int fd = client_socket(SOCK_STREAM), fds[2] = { fd, fd };

	run_p50(once_rr, fds);
}

static void run_lone(void)
{
	int fds[2] = { client_socket(SOCK_DGRAM), server_socket(SOCK_DGRAM, 0) };
	struct sockaddr_in6 here;
	socklen_t len = sizeof(here);

	check(getsockname(fds[1], (void *)&here, &len), "getsockname");
	memcpy(buffer, &here.sin6_port, 2);
	run_p50(once_rr, fds);
}

/* us that all CPUs worked since the machine started */
static double busy_us(void)
{
	double user, nice, system, idle, wait, irq, softirq;
	FILE *stat = fopen("/proc/stat", "r");

	check(!stat || fscanf(stat, "cpu %lf %lf %lf %lf %lf %lf %lf", &user, &nice, &system, &idle, &wait, &irq,
			      &softirq) != 7, "/proc/stat");
	fclose(stat);
	return (user + nice + system + irq + softirq) * 1e6 / sysconf(_SC_CLK_TCK);
}

static void stream_until(int fd, long bytes)
{
	for (long sent = 0; sent < bytes;) {
		ssize_t n = write(fd, buffer, sizeof(buffer));

		check(n < 1, "write");
		sent += n;
	}
	while (*received < bytes)
		sched_yield();
	*received = 0;
}

static void run_bulk(void)
{
	long amount = atol(args[AMOUNT]) << 20;
	int fd = client_socket(SOCK_STREAM);
	double begin, busy;

	stream_until(fd, amount / 10 / CHUNK * CHUNK);
	busy = busy_us();
	begin = now_us();
	stream_until(fd, amount);
	begin = now_us() - begin;
	printf("%.3f %.2f\n", amount * 8 / begin / 1e3, (busy_us() - busy) / (amount >> 20));
}

static void run_flood(int answered)
{
	int fd = client_socket(SOCK_DGRAM);
	double begin, end = atof(args[AMOUNT]) * 1e3;
	struct mmsghdr m[BATCH] = { 0 };
	struct iovec iov = { buffer, DATAGRAM };
	long before;

	for (int i = 0; i < WARM && answered; i++)
		check(write(fd, "x", 1) != 1 || read(fd, buffer, 1) != 1, "answer");
	for (int i = 0; i < BATCH; i++)
		m[i].msg_hdr = (struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1 };
	for (int i = 0; i < WARM; i++)
		sendmmsg(fd, m, BATCH, 0);
	before = *received;
	begin = now_us();
	while (now_us() - begin < end)
		sendmmsg(fd, m, BATCH, 0);
	printf("%.2f\n", (*received - before) * 1e3 / (now_us() - begin));
}

static int run(void)
{
	if (!strcmp(args[1], "connect"))
		run_p50(once_connect, NULL);
	else if (!strcmp(args[1], "rr"))
		run_rr();
	else if (!strcmp(args[1], "lone"))
		run_lone();
	else if (!strcmp(args[1], "bulk"))
		run_bulk();
	else
		run_flood(!strcmp(args[1], "flood"));
	return 0;
}

int main(int argc, char **argv)
{
	int ready[2], failed;
	pid_t server;

	args = argv;
	if (argc != CPUS + 2)
		return 2;
	received = mmap(NULL, sizeof(*received), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(received == MAP_FAILED || pipe(ready), "start");
	come_first();
	server = fork();
	if (!server)
		serve(ready[1]);
	close(ready[1]);
	check(read(ready[0], buffer, 1) != 1, "the server");
	enter(args[2], atoi(args[CPUS]));
	failed = run();
	fflush(stdout);
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	return failed;
}

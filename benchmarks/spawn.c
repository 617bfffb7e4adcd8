/* Runs a CNI plugin N times, at most P at once, and times each from fork to exit.
 *
 *   spawn COMMAND N P NETNS_PREFIX CONFIG OUTPUT PROGRAM
 *
 * Run i gets CNI_CONTAINERID=bench-<i> and CNI_NETNS=<NETNS_PREFIX><i>, the file CONFIG on stdin, and
 * appends what it prints to OUTPUT. CNI_PATH comes from the environment. Prints one line per run,
 * "<microseconds> <exit status>", and at the end "total <microseconds>". Python's own fork and pipe
 * would cost more than what is measured. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SPAWN_MAX 4096

struct run {
	pid_t pid;
	long begin;
};

static long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void put_int(char *out, size_t room, const char *prefix, int i)
{
	snprintf(out, room, "%s%d", prefix, i);
}

static pid_t run_start(int i, char **argv)
{
	char id[64], netns[512];
	pid_t pid;
	int in, out;

	put_int(id, sizeof(id), "bench-", i);
	put_int(netns, sizeof(netns), argv[4], i);
	setenv("CNI_CONTAINERID", id, 1);
	setenv("CNI_NETNS", netns, 1);
	pid = vfork();
	if (pid)
		return pid;
	in = open(argv[5], O_RDONLY);
	out = open(argv[6], O_WRONLY | O_APPEND | O_CREAT, 0600);
	if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0)
		_exit(126);
	execl(argv[7], argv[7], (char *)NULL);
	_exit(127);
}

static void run_finish(struct run *runs, int started)
{
	int status;
	pid_t pid = wait(&status);
	long end = now_us();

	for (int i = 0; i < started; i++)
		if (runs[i].pid == pid)
			printf("%ld %d\n", end - runs[i].begin, WIFEXITED(status) ? WEXITSTATUS(status) : 255);
}

int main(int argc, char **argv)
{
	static struct run runs[SPAWN_MAX];
	int total, parallel, started = 0, finished = 0;
	long begin;

	if (argc != 8)
		return 2;
	total = atoi(argv[2]);
	parallel = atoi(argv[3]);
	if (total > SPAWN_MAX || parallel < 1)
		return 2;
	setenv("CNI_COMMAND", argv[1], 1);
	setenv("CNI_IFNAME", "eth0", 1);
	begin = now_us();
	while (finished < total) {
		if (started < total && started - finished < parallel) {
			runs[started].begin = now_us();
			runs[started].pid = run_start(started, argv);
			started++;
			continue;
		}
		run_finish(runs, started);
		finished++;
	}
	printf("total %ld\n", now_us() - begin);
	return 0;
}

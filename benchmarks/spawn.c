/* Runs a chain of CNI plugins for N pods, at most P pods at once, and times each pod from fork to exit.
 *
 *   spawn COMMAND N P FIRST NETNS_PREFIX DIR (CONFIG PROGRAM)...
 *
 * Pod i (FIRST to FIRST + N - 1) gets CNI_CONTAINERID=bench-<i>, CNI_NETNS=<NETNS_PREFIX><i> and, on
 * stdin, CONFIG with each "@port" replaced by 20000 + i. As libcni does, a plugin after the first gets
 * its predecessor's result as prevResult; DEL runs the chain backwards with ADD's last result, which is
 * kept in DIR/result-<i>; what DEL prints goes to DIR/out-<i>. CNI_PATH comes from the environment.
 * Prints one line per pod, "<microseconds> <exit status>", and at the end "total <microseconds>".
 * Python's own fork and pipe would cost more than what is measured. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SPAWN_MAX 4096
#define TEXT_MAX 65536
#define FIRST_PORT 20000
#define PLUGINS_AT 7 /* argv: the first CONFIG */

struct run {
	pid_t pid;
	int stage;
	long begin;
};

struct chain {
	char **argv;
	int length, del, first;
};

static long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static size_t text_read(const char *path, char *text)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? 0 : read(fd, text, TEXT_MAX - 1);

	if (fd >= 0)
		close(fd);
	size = size < 0 ? 0 : size;
	text[size] = 0;
	return (size_t)size;
}

static void text_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		exit(2);
	close(fd);
}

/* The configuration of one plugin for pod i, its prevResult inside, in a file of its own. */
static void config_write(const struct chain *chain, const char *path, const char *template, int i, int prev)
{
	static char config[TEXT_MAX], result[TEXT_MAX], out[3 * TEXT_MAX];
	const char *at = config, *port;
	char name[512], *to = out;

	text_read(template, config);
	while ((port = strstr(at, "\"@port\""))) {
		to += sprintf(to, "%.*s%d", (int)(port - at), at, FIRST_PORT + i);
		at = port + strlen("\"@port\"");
	}
	to = stpcpy(to, at);
	snprintf(name, sizeof(name), "%s/result-%d", chain->argv[6], i);
	if (prev && text_read(name, result)) {
		while (to > out && to[-1] != '}')
			to--;
		sprintf(to - 1, ",\"prevResult\":%s}", result);
	}
	text_write(path, out);
}

static void run_stage(const struct chain *chain, struct run *run, int i)
{
	int plugin = chain->del ? chain->length - 1 - run->stage : run->stage, in, out;
	char **argv = chain->argv + PLUGINS_AT + 2 * plugin;
	char id[32], netns[512], config[512], output[512];

	snprintf(id, sizeof(id), "bench-%d", i);
	snprintf(netns, sizeof(netns), "%s%d", chain->argv[5], i);
	snprintf(config, sizeof(config), "%s/in-%d", chain->argv[6], i);
	snprintf(output, sizeof(output), "%s/%s-%d", chain->argv[6], chain->del ? "out" : "result", i);
	config_write(chain, config, argv[0], i, chain->del || run->stage);
	setenv("CNI_CONTAINERID", id, 1);
	setenv("CNI_NETNS", netns, 1);
	run->pid = vfork();
	if (run->pid)
		return;
	in = open(config, O_RDONLY);
	out = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0)
		_exit(126);
	execl(argv[1], argv[1], (char *)NULL);
	_exit(127);
}

/* One pod further: 1 when it is done. */
static int run_step(const struct chain *chain, struct run *runs, int started)
{
	int status, k = 0;
	pid_t pid = wait(&status);

	while (k < started && runs[k].pid != pid)
		k++;
	if (k == started)
		return 0;
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 255;
	runs[k].stage++;
	if (!status && runs[k].stage < chain->length) {
		run_stage(chain, &runs[k], chain->first + k);
		return 0;
	}
	printf("%ld %d\n", now_us() - runs[k].begin, status);
	runs[k].pid = 0;
	return 1;
}

int main(int argc, char **argv)
{
	static struct run runs[SPAWN_MAX];
	struct chain chain = { .argv = argv, .length = (argc - PLUGINS_AT) / 2 };
	int total, parallel, started = 0, finished = 0;
	long begin;

	if (argc < PLUGINS_AT + 2 || (argc - PLUGINS_AT) % 2)
		return 2;
	total = atoi(argv[2]);
	parallel = atoi(argv[3]);
	chain.first = atoi(argv[4]);
	chain.del = !strcmp(argv[1], "DEL");
	if (total > SPAWN_MAX || parallel < 1)
		return 2;
	setenv("CNI_COMMAND", argv[1], 1);
	setenv("CNI_IFNAME", "eth0", 1);
	begin = now_us();
	while (finished < total) {
		if (started < total && started - finished < parallel) {
			runs[started].begin = now_us();
			run_stage(&chain, &runs[started], chain.first + started);
			started++;
			continue;
		}
		finished += run_step(&chain, runs, started);
	}
	printf("total %ld\n", now_us() - begin);
	return 0;
}

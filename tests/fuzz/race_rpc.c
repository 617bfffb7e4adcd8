/* Servers that come and go, threads that carry calls out, and clients that call, cancel, hang up and do not read.
 * Under AddressSanitizer a call that is freed too early is a crash, under ThreadSanitizer a missing lock a report. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "rpc.h"
#include "rpc_frames.h"

enum { THREADS = 5, MOST = 4, CLIENTS = 4 };

static atomic_int over;
static atomic_long carried_out, answered;
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static socklen_t address_size;

static unsigned int chance(unsigned int *seed, unsigned int below)
{
	*seed = *seed * 1664525u + 1013904223u;
	return (*seed >> 8) % below;
}

static void *work(void *server)
{
	static const uint8_t answer[100000];
	struct np_rpc_request request;
	unsigned int seed = (unsigned int)(uintptr_t)&request;

	while (!np_rpc_next(server, &request)) {
		must(!strcmp(request.path, "/t.T/Echo") && request.size < 4096);
		if (!chance(&seed, 8))
			usleep(chance(&seed, 2000));
		np_rpc_reply(server, request.token, chance(&seed, 4) ? 0 : 13, answer,
			     chance(&seed, 20) ? chance(&seed, 100) : sizeof(answer));
		atomic_fetch_add(&carried_out, 1);
	}
	return NULL;
}

static void one_client(int fd, unsigned int *seed)
{
	struct timeval patience = { .tv_usec = 1000 };
	uint8_t said[8192], heard[65536];

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (send(fd, PREFACE, sizeof(PREFACE) - 1, MSG_NOSIGNAL) < 0)
		return;
	for (uint32_t stream = 1, turns = chance(seed, 60); turns; turns--, stream += 2) {
		size_t size = call(said, stream, chance(seed, 5) ? "1H" : "1m", chance(seed, 3000));

		if (!chance(seed, 4))
			size += frame(said + size, 3, 0, stream, "\0\0\0\10", 4); /* cancelled */
		if (!chance(seed, 8))
			size = chance(seed, (unsigned int)size); /* and soon out of step */
		if (send(fd, said, size, MSG_NOSIGNAL) < 0)
			return;
		if (chance(seed, 3) && recv(fd, heard, sizeof(heard), 0) > 0)
			atomic_fetch_add(&answered, 1);
	}
}

static void *press(void *number)
{
	unsigned int seed = (unsigned int)(uintptr_t)number;

	while (!atomic_load(&over)) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

		must(fd >= 0);
		if (!connect(fd, (struct sockaddr *)&address, address_size))
			one_client(fd, &seed);
		close(fd);
	}
	return NULL;
}

static void one_server(int ms)
{
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error;
	pthread_t threads[THREADS];
	struct np_rpc *s;

	must(!bind(listener, (struct sockaddr *)&address, address_size) && !listen(listener, 100));
	s = np_rpc_open(listener, MOST, 2, &error);
	must(s != NULL);
	for (int i = 0; i < THREADS; i++)
		must(!pthread_create(&threads[i], NULL, work, s));
	usleep((useconds_t)ms * 1000);
	must(!np_rpc_stop(s, ms % 3, 20000));
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	np_rpc_close(s);
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
	pthread_t clients[CLIENTS];

	/* Abstract: gone with its listener. */
	address_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
				   (size_t)sprintf(address.sun_path + 1, "np-rpc-race-%d", getpid()));
	for (int i = 0; i < CLIENTS; i++)
		must(!pthread_create(&clients[i], NULL, press, (void *)(uintptr_t)(i + 1)));
	for (int i = 0; !i || time(NULL) < end; i++)
		one_server(10 + i * 37 % 200);
	atomic_store(&over, 1);
	for (int i = 0; i < CLIENTS; i++)
		pthread_join(clients[i], NULL);
	fprintf(stderr, "%ld calls carried out, %ld answers seen\n", carried_out, answered);
	must(carried_out > 100 && answered > 100);
	return 0;
}

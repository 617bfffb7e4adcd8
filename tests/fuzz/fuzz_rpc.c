/* Any bytes from a client, in pieces: the server reads them, carries out what it makes of them, and holds nothing
 * when the client is gone.
 *
 * With libFuzzer (clang -fsanitize=fuzzer) or by itself: fuzz_rpc SECONDS mutates its own calls.
 */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "inner.h"
#include "rpc_frames.h"

static struct np_rpc *server;

static void carry_out(void)
{
	static uint8_t answer[70000];
	static unsigned int turn;
	struct np_rpc_request request;

	while (!TAILQ_EMPTY(&server->waiting)) {
		TAILQ_FIRST(&server->waiting)->deadline = 0; /* this thread must not wait for the next */
		must(!np_rpc_next(server, &request));
		must(request.path && request.message);
		if (request.size)
			must(request.message[0] + request.message[request.size - 1] >= 0);
		turn++;
		np_rpc_reply(server, request.token, turn % 5 ? 0 : 13, answer, turn % 3 ? turn % 100 : sizeof(answer));
	}
}

/* What the server says is read or not, so its window and its socket may be full. */
static void speak(int fd, const uint8_t *data, size_t len, int reads)
{
	struct np_conn *c = TAILQ_FIRST(&server->conns);
	static uint8_t said[1 << 18];

	if (len)
		must(send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL) != 0);
	else
		must(!shutdown(fd, SHUT_WR));
	if (c)
		np_conn_serve(c, len ? EPOLLIN : EPOLLIN | EPOLLRDHUP);
	carry_out();
	while (reads && recv(fd, said, sizeof(said), MSG_DONTWAIT) > 0)
		;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	int fds[2], error;
	size_t piece;

	if (!server)
		server = np_rpc_open(eventfd(0, 0), 2, 60000, &error);
	must(server != NULL);
	if (len < 2)
		return 0;
	must(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	must(!np_conn_open(server, fds[0]));
	piece = data[0] % 8 ? data[0] * 8u : 1;
	if (data[1] % 8)
		speak(fds[1], (const uint8_t *)PREFACE, sizeof(PREFACE) - 1, 1);
	for (size_t at = 2; at < len; at += piece)
		speak(fds[1], data + at, len - at < piece ? len - at : piece, data[1] % 3);
	speak(fds[1], NULL, 0, 1);
	close(fds[1]);
	while (!TAILQ_EMPTY(&server->conns)) /* said what it could, until nobody was there */
		np_conn_serve(TAILQ_FIRST(&server->conns), EPOLLIN | EPOLLHUP);
	must(!server->held && !server->running && TAILQ_EMPTY(&server->waiting) &&
	     TAILQ_EMPTY(&server->owing));
	return 0;
}

#ifndef LIBFUZZER
static unsigned int chance(unsigned int below)
{
	static unsigned int lfsr = 1;

	lfsr = lfsr * 1664525u + 1013904223u;
	return (lfsr >> 8) % below;
}

int main(int argc, char **argv)
{
	static const char *const timeouts[] = { "1H", "0n", "99999999H", "x" };
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
	static uint8_t input[30000];

	for (unsigned long i = 0; i % 64 || time(NULL) < end; i++) {
		size_t len = 2;

		for (unsigned int k = 0, calls = 1 + chance(5); k < calls; k++) {
			len += call(input + len, 2 * k + 1, timeouts[chance(4)], chance(4) ? chance(50) : chance(4000));
			if (!chance(4))
				len += frame(input + len, (int)chance(11), (int)chance(64), chance(2 * k + 4), "\0\0\0\10\0\0\0\0", chance(9));
		}
		input[0] = (uint8_t)chance(256);
		input[1] = (uint8_t)chance(256);
		for (unsigned int k = chance(4) ? chance(6) : 0; k; k--)
			input[2 + chance((unsigned int)len - 2)] = (uint8_t)chance(256);
		LLVMFuzzerTestOneInput(input, chance(4) ? len : 2 + chance((unsigned int)len - 2));
	}
	np_rpc_close(server);
	return 0;
}
#endif

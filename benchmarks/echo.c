/* The floor of a DNS server over UDP: every packet goes back with QR set, 64 a system call. */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { BATCH = 64, SIZE = 512 + 64 };

int main(int argc, char **argv)
{
	static uint8_t packet[BATCH][SIZE];
	static struct sockaddr_in peer[BATCH];
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(argc > 2 ? atoi(argv[2]) : 53) };
	struct mmsghdr m[BATCH] = { 0 };
	struct iovec iov[BATCH];
	int fd = socket(AF_INET, SOCK_DGRAM, 0), space = 4 << 20;

	if (argc < 2 || inet_pton(AF_INET, argv[1], &here.sin_addr) != 1)
		return fputs("usage: echo ADDRESS [PORT]\n", stderr), 2;
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof(space));
	if (fd < 0 || bind(fd, (void *)&here, sizeof(here)))
		return perror("bind"), 1;
	for (;;) {
		int n;

		for (int i = 0; i < BATCH; i++) {
			iov[i] = (struct iovec){ packet[i], SIZE };
			m[i].msg_hdr = (struct msghdr){ .msg_name = &peer[i], .msg_namelen = sizeof(peer[i]),
							.msg_iov = &iov[i], .msg_iovlen = 1 };
		}
		n = recvmmsg(fd, m, BATCH, MSG_WAITFORONE, NULL);
		for (int i = 0; i < n; i++) {
			packet[i][2] |= 0x80;
			iov[i].iov_len = m[i].msg_len;
		}
		for (int at = 0, sent; at < n; at += sent)
			if ((sent = sendmmsg(fd, m + at, n - at, 0)) < 1)
				break;
	}
}

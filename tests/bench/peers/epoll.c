/*
 * A bare HTTP server for Linux, as small as one can be: one thread, epoll, no parsing but for the end of a request.
 * Every request on a connection that stays open is answered with the same short text as that of `GET /` of the
 * service `transfer`. `sh qemu/setup.sh --bench` compiles it: cc -O2 -static.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORT 80
#define EVENTS 512
/* Longest request head. */
#define HEAD 2048
#define BODY                                                                  \
	"GET /bytes/{n}?seed={s}  n bytes of the splitmix64 stream for seed s\n" \
	"PUT /sink                length and SHA-256 of the body\n"

struct client {
	int socket;
	size_t have;
	char head[HEAD];
};

static char answer[512];
static size_t answer_len;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Answers what is there in full; 0 when the connection is over. */
static int serve(struct client *client)
{
	for (;;) {
		ssize_t got = read(client->socket, client->head + client->have, HEAD - client->have);
		if (got == 0 || (got < 0 && errno != EAGAIN))
			return 0;
		if (got < 0)
			return 1;
		client->have += (size_t)got;
		char *at = client->head, *last = client->head + client->have, *end;
		while ((end = memmem(at, (size_t)(last - at), "\r\n\r\n", 4)) != NULL) {
			/* The answer is shorter than any send buffer, and its reader waits for it. */
			if (write(client->socket, answer, answer_len) != (ssize_t)answer_len)
				return 0;
			at = end + 4;
		}
		client->have = (size_t)(last - at);
		memmove(client->head, at, client->have);
		if (client->have == HEAD)
			return 0;
		/* A short read has emptied the socket. */
		if (client->have == 0 && (size_t)got < HEAD)
			return 1;
	}
}

static void accept_all(int poller, int listener)
{
	int socket, one = 1;
	while ((socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		struct client *client = calloc(1, sizeof *client);
		if (client == NULL)
			die("calloc");
		client->socket = socket;
		setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = client };
		if (epoll_ctl(poller, EPOLL_CTL_ADD, socket, &event) < 0)
			die("epoll_ctl");
	}
}

int main(void)
{
	int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0)
		die("listen");
	answer_len = (size_t)snprintf(answer, sizeof answer,
		"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %zu\r\n\r\n%s",
		strlen(BODY), BODY);
	int poller = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL }, events[EVENTS];
	if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) < 0)
		die("epoll");
	puts("epoll: listening on port 80");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(poller, events, EVENTS, -1);
		for (int i = 0; i < count; i++) {
			struct client *client = events[i].data.ptr;
			if (client == NULL) {
				accept_all(poller, listener);
			} else if (!serve(client)) {
				close(client->socket);
				free(client);
			}
		}
	}
}

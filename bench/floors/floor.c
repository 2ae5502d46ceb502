// floor: what a fan-out costs in C: one send() for each message and connection, and nothing else.
//
//   floor PORT      /sub gets what is sent to /pub, anything else its own messages back; a plain GET: small JSON
//
// One thread, epoll. It does as much of the protocol as loadgen needs: it knows the answer to one key, and takes whole,
// masked frames of less than 64 KiB. Who does not take a message at once is cut off, so that no loss stays unseen.

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_SIZE = 1 << 17, MAX_SUBSCRIBERS = 1 << 16, CLOSE = 8 };

typedef struct {
  int fd;
  enum { HTTP, ECHO, SUBSCRIBER, PUBLISHER } role;
  int place;  // among the subscribers
  uint8_t *held;  // the beginning of a request or frame whose rest is still to come
  size_t held_size;
} Connection;

static Connection *subscribers[MAX_SUBSCRIBERS];
static int subscriber_count, epoll;
static uint8_t bytes[READ_SIZE];

static void check(bool is_good, const char *what) {
  if (is_good) return;
  perror(what);
  exit(1);
}

static void send_whole(Connection *c, const void *data, size_t size) {
  if (send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size) shutdown(c->fd, SHUT_RDWR);
}

static void end(Connection *c) {
  if (c->role == SUBSCRIBER) {
    Connection *last = subscribers[--subscriber_count];
    subscribers[c->place] = last;
    last->place = c->place;
  }
  close(c->fd);
  free(c->held);
  free(c);
}

// What was taken of the bytes. The key and its answer are the example of RFC 6455 section 1.3.
static size_t answer_request(Connection *c, const uint8_t *data, size_t size) {
  static const char key[] = "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
  static const char upgrade[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
  static const char json[] = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 27\r\n\r\n"
                             "{\"message\":\"Hello, World!\"}";
  const uint8_t *last = memmem(data, size, "\r\n\r\n", 4);
  if (!last) return 0;
  size_t head = last + 4 - data;
  if (!memmem(data, head, key, strlen(key))) {
    send_whole(c, json, strlen(json));
  } else {
    send_whole(c, upgrade, strlen(upgrade));
    c->role = !memcmp(data, "GET /sub ", 9) ? SUBSCRIBER : !memcmp(data, "GET /pub ", 9) ? PUBLISHER : ECHO;
  }
  if (c->role == SUBSCRIBER) {
    check(subscriber_count < MAX_SUBSCRIBERS, "too many subscribers");
    c->place = subscriber_count;
    subscribers[subscriber_count++] = c;
  }
  return head;
}

// What was taken of the bytes, 0 when the frame is not complete.
static size_t pass_on_frame(Connection *c, uint8_t *data, size_t size, bool *is_close) {
  if (size < 6) return 0;
  size_t head = 6, length = data[1] & 127;
  if (length == 126) {
    head = 8;
    length = data[2] << 8 | data[3];
  }
  if (size < head + length) return 0;
  uint8_t *content = data + head, *mask = content - 4;
  for (size_t i = 0; i < length; i++) content[i] ^= mask[i & 3];
  *is_close = (data[0] & 15) == CLOSE;
  // Unmasked, the same frame begins four bytes later: its first byte and its length stand where the mask ends.
  uint8_t *frame = data + 4;
  memmove(frame, data, head - 4);
  frame[1] &= 127;
  size_t frame_size = head - 4 + length;
  if (c->role == PUBLISHER && !*is_close)
    for (int i = 0; i < subscriber_count; i++) send_whole(subscribers[i], frame, frame_size);
  else
    send_whole(c, frame, frame_size);
  return head + length;
}

static void readable(Connection *c) {
  size_t size = c->held_size;
  if (size) memcpy(bytes, c->held, size);
  ssize_t n = recv(c->fd, bytes + size, sizeof bytes - size, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    end(c);
    return;
  }
  size += n;
  size_t taken = 0;
  for (size_t more = 1; more; taken += more) {
    bool is_close = false;
    more = c->role == HTTP ? answer_request(c, bytes + taken, size - taken)
                           : pass_on_frame(c, bytes + taken, size - taken, &is_close);
    if (is_close) {
      end(c);
      return;
    }
  }
  c->held_size = size - taken;
  if (!c->held_size) return;
  c->held = realloc(c->held, READ_SIZE);
  check(c->held, "realloc");
  memcpy(c->held, bytes + taken, c->held_size);
}

static void accept_all(int listener) {
  int fd, yes = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    Connection *c = calloc(1, sizeof *c);
    check(c, "calloc");
    c->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    check(!epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
  }
  check(errno == EAGAIN || errno == ECONNABORTED, "accept");
}

int main(int count, char **arguments) {
  if (count != 2) {
    fprintf(stderr, "usage: floor PORT\n");
    return 2;
  }
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  check(!bind(listener, (struct sockaddr *)&address, sizeof address), "bind");
  check(!listen(listener, 4096), "listen");
  epoll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[1024];
  check(!epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event), "epoll_ctl");
  for (;;) {
    int n = epoll_wait(epoll, events, 1024, -1);
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr)
        readable(events[i].data.ptr);
      else
        accept_all(listener);
    }
  }
}

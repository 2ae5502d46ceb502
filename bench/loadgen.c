// loadgen: load for a WebSocket or HTTP server on 127.0.0.1. It compares servers that are faster than a client in
// Python; `microws bench`, which shares nothing with it, is for users who measure their own app.
// One thread, epoll, busy polling: give it a core of its own.
//
//   loadgen echo    -p PORT -u PATH -c CONNECTIONS -t SECONDS     one message in flight on each connection: text, -b: binary
//   loadgen http    -p PORT -u PATH -c CONNECTIONS -t SECONDS     keep-alive GETs, one in flight on each connection
//     -r RATE       sends so many a second at fixed times, each on the connection that has been free for longest. A
//                   latency counts from the time at which its request was due, whether or not a connection was free
//   loadgen post    -p PORT -u PATH -c CONNECTIONS -t SECONDS     the same with POSTs of JSON, -s BYTES each
//     -U PATH       of a WebSocket that must receive the message of each POST, before the next one on that connection
//   loadgen connect -p PORT -u PATH -c IN_FLIGHT -t SECONDS       handshake, Close, and again
//   loadgen idle    -p PORT -u PATH -c CONNECTIONS                opens them, prints, holds them until stdin ends
//     -K KIND       of the connections: websocket, events (a GET of an event stream), http (kept after one GET)
//   loadgen fan     -p PORT -u SUBSCRIBE_PATH -U PUBLISH_PATH -c SUBSCRIBERS -d IN_FLIGHT -t SECONDS
//                                                                 publishes again when every subscriber has a message
//     -K events     the subscribers are event streams; each message is an event of its own
//     -J            publishes JSON, by POST over one keep-alive connection: the next one when the last is answered
//     -r RATE       publishes so many a second, for SECONDS, and waits for the last; count and latencies are then those
//                   of deliveries, not of messages that all have. No warm-up
//     -O TEXT       each subscriber sends it when it is open, and may get messages without a number
//     -x STALLED    so many of the subscribers do not read until the end; then it tells what became of them
//   loadgen flood   -p PORT -u SUBSCRIBE_PATH -U PUBLISH_PATH -c SUBSCRIBERS -k BYTES -t SECONDS
//                                                                 publishes what the app takes, to subscribers that
//                                                                 read BYTES a second each; who is closed comes back.
//                                                                 The app answers the publisher's "sync" with a message
//   -s BYTES of a message (64)      -w SECONDS of warm-up (0.5)
//   -P process id of the server, to count its CPU time; again for each further process
//
// Prints one JSON object. Whatever is not as it must be (a refused handshake, a wrong echo, a message lost, repeated or
// out of order, a connection closed by the server) ends it with {"error": ...} and exit status 1. Slow subscribers
// may lose messages; those of `flood` must be told of each loss, by a gap marker or the end of their connection.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_MESSAGE = 1 << 24, MAX_FRAME = MAX_MESSAGE + 14, READ_SIZE = 1 << 18 };
enum { OPENING_AT_ONCE = 64, MAX_IN_FLIGHT = 1024, MAX_SERVER_PROCESSES = 16 };
static const double PATIENCE = 15;  // seconds without any progress

static int port = 8000, connection_count = 1, message_size = 64, in_flight = 1, stalled_count;
static double seconds = 3, warm_up = 0.5, rate, bytes_a_second;
static pid_t server_pids[MAX_SERVER_PROCESSES];
static int server_pid_count;
static bool is_binary, is_json;
static enum { WEBSOCKET, EVENTS, HTTP } kind;  // of the connections of `idle`, and of the subscribers of `fan`
static const char *path = "/", *publish_path = "", *opening = "";

// ---- time, failure, latencies

static uint64_t now(void) {  // nanoseconds
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double seconds_since(uint64_t start) { return (now() - start) / 1e9; }

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  for (char *p = text; *p; p++) {
    if (*p == '"' || *p == '\\') *p = '\'';
    if (*p < ' ' || *p > '~') *p = ' ';
  }
  printf("{\"error\": \"%s\"}\n", text);
  exit(1);
}

static double server_cpu_seconds(void) {  // 0 without -P
  double sum = 0;
  for (int i = 0; i < server_pid_count; i++) {
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(server_pids[i], &clock) || clock_gettime(clock, &t))
      fail("-P: no process %d", (int)server_pids[i]);
    sum += t.tv_sec + t.tv_nsec / 1e9;
  }
  return sum;
}

typedef struct {
  double wall, server_cpu;  // seconds
} Elapsed;

static bool measuring;
static long completed;
static long body_bytes;      // http, while measuring: a large body counts while it arrives
static uint32_t *latencies;  // tens of nanoseconds
static size_t latency_count, latency_capacity;

static void complete(uint64_t nanoseconds) {
  if (!measuring) return;
  completed++;
  if (latency_count == latency_capacity) {
    latency_capacity = latency_capacity ? latency_capacity * 2 : 1 << 16;
    latencies = realloc(latencies, latency_capacity * sizeof *latencies);
    if (!latencies) fail("out of memory");
  }
  uint64_t value = nanoseconds / 10;
  latencies[latency_count++] = value > UINT32_MAX ? UINT32_MAX : value;
}

static int compare(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static double percentile(double fraction) {  // microseconds; the latencies are sorted
  if (!latency_count) return 0;
  size_t i = fraction * latency_count;
  return latencies[i < latency_count ? i : latency_count - 1] / 100.0;
}

static void print_rate(const char *mode, long count, Elapsed elapsed, const char *more) {  // more: further members
  if (!count && !body_bytes) fail("nothing completed in %.1f s", elapsed.wall);
  qsort(latencies, latency_count, sizeof *latencies, compare);
  printf("{\"mode\": \"%s\", \"connections\": %d, \"count\": %ld, \"wall_s\": %.4f, \"server_cpu_s\": %.4f, "
         "\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f%s}\n",
         mode, connection_count, count, elapsed.wall, elapsed.server_cpu, percentile(0.5), percentile(0.99), percentile(1),
         more);
}

// ---- connections

typedef struct {
  int fd;
  enum { FREE, CONNECTING, HANDSHAKE, OPEN, CLOSING } phase;
  const char *path;
  uint64_t started;   // when what is in flight was sent
  uint32_t sequence;  // fan, flood: the last message received
  bool is_slow;       // does not read whenever it could
  bool came_back;     // flood: this is not its first connection
  bool is_warned;     // flood: by a gap marker, since the last message
  size_t sent;        // echo: how much of the frame
  size_t received, missing;  // echo: of the payload, so far and still to come; http: `missing` of the body
  bool is_last;       // http: the server closes the connection behind this response
  bool is_chunked;    // events
  bool is_answered, is_heard;  // post: the response has arrived, and the subscriber has the message
  uint8_t *held;      // the beginning of a message whose rest is still to come
  size_t held_size, held_capacity;
} Connection;

// What a mode does when something happens. `parse` returns the bytes that it took; the rest is held for the next call.
// A mode with `part` is given each payload as it comes, with `received` and `missing` before and behind the part.
static struct {
  void (*connected)(Connection *);
  size_t (*parse)(Connection *, const uint8_t *, size_t);
  void (*opened)(Connection *);
  void (*message)(Connection *, const uint8_t *, size_t);
  void (*part)(Connection *, const uint8_t *, size_t);
  void (*writable)(Connection *);
  void (*closed)(Connection *);
  void (*turn)(void);  // after whatever one look at the sockets brought
} on;

static int epoll;
static uint64_t read_at;  // when the bytes that are being parsed were read
static size_t most_at_once = READ_SIZE;
static long reads;       // that brought something
static int close_code;   // of the Close frame that ends a connection, 0 without one

static void watch(Connection *c, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = c};
  if (epoll_ctl(epoll, operation, c->fd, &event) < 0) fail("epoll_ctl: %s", strerror(errno));
}

static void start(Connection *c, const char *to) {
  int yes = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) fail("socket: %s", strerror(errno));
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  if (c->is_slow) {  // as over a network: little is on its way in the kernel's buffers, of which loopback has megabytes
    int window = 4096, segment = 536;
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &window, sizeof window);
    setsockopt(c->fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
  }
  c->phase = CONNECTING;
  c->path = to;
  c->sequence = 0;
  c->held_size = 0;
  c->missing = 0;
  c->is_last = c->is_chunked = false;
  c->started = now();
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
    fail("connect: %s", strerror(errno));
  watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

// With a reset, so that no port is kept in TIME_WAIT.
static void drop(Connection *c) {
  struct linger at_once = {.l_onoff = 1, .l_linger = 0};
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close(c->fd);
  c->phase = FREE;
  c->held_size = 0;
}

static void send_all(Connection *c, const void *data, size_t size) {
  for (size_t sent = 0; sent < size;) {
    ssize_t n = send(c->fd, (const char *)data + sent, size - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += n;
    } else if (n < 0 && errno == EAGAIN) {
      struct pollfd writable = {.fd = c->fd, .events = POLLOUT};
      if (poll(&writable, 1, PATIENCE * 1000) == 0) fail("the server does not read");
    } else {
      fail("send: %s", strerror(errno));
    }
  }
}

static void closed_unexpectedly(Connection *c) {
  fail("the server closed a connection to %s, with code %d", c->path, close_code);
}

static void tcp_connected(Connection *c) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) fail("connect: %s", strerror(error));
  watch(c, EPOLL_CTL_MOD, EPOLLIN);
  on.connected(c);
}

static void hold(Connection *c, const uint8_t *data, size_t size) {
  if (size > c->held_capacity) {
    c->held_capacity = size * 2;
    free(c->held);
    c->held = malloc(c->held_capacity);
    if (!c->held) fail("out of memory");
  }
  memcpy(c->held, data, size);
  c->held_size = size;
}

static void readable(Connection *c) {
  static uint8_t bytes[READ_SIZE];
  size_t size = c->held_size;
  if (size) memcpy(bytes, c->held, size);
  size_t room = sizeof bytes - size;
  ssize_t n = recv(c->fd, bytes + size, room < most_at_once ? room : most_at_once, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    if (n < 0 && c->phase != CLOSING && !c->is_slow) fail("recv: %s", strerror(errno));
    close_code = 0;
    on.closed(c);
    return;
  }
  reads++;
  read_at = now();
  size += n;
  c->held_size = 0;
  size_t taken = on.parse(c, bytes, size);
  if (c->phase != FREE && c->phase != CONNECTING && taken < size) {
    if (size - taken > READ_SIZE / 2) fail("more than %d bytes without an end of message", READ_SIZE / 2);
    hold(c, bytes + taken, size - taken);
  }
}

static void run_once(void) {
  static struct epoll_event events[1024];
  int n = epoll_wait(epoll, events, 1024, 0);
  for (int i = 0; i < n; i++) {
    Connection *c = events[i].data.ptr;
    if (c->phase == CONNECTING) {
      tcp_connected(c);
    } else if (c->phase != FREE) {
      if (events[i].events & EPOLLOUT) on.writable(c);
      if (events[i].events & ~EPOLLOUT) readable(c);
    }
  }
  if (on.turn) on.turn();
}

static void run_for(double duration) {
  uint64_t start = now(), progress = start;
  long last = reads;
  while (seconds_since(start) < duration) {
    run_once();
    if (reads != last) {
      last = reads;
      progress = now();
    }
    if (measuring && seconds_since(progress) > PATIENCE) fail("no answer for %.0f s", PATIENCE);
  }
}

static void run_until(bool (*is_done)(void), const char *awaited) {
  uint64_t progress = now();
  for (long last = reads; !is_done(); run_once()) {
    if (reads != last) {
      last = reads;
      progress = now();
    }
    if (seconds_since(progress) > PATIENCE) fail("waited %.0f s for %s", PATIENCE, awaited);
  }
}

static Elapsed measure(void) {  // warm-up, then what counts
  run_for(warm_up);
  measuring = true;
  uint64_t start = now();
  double cpu_before = server_cpu_seconds();
  run_for(seconds);
  Elapsed elapsed = {.wall = seconds_since(start), .server_cpu = server_cpu_seconds() - cpu_before};
  measuring = false;
  return elapsed;
}

static Connection *new_connections(int count) {
  Connection *connections = calloc(count, sizeof *connections);
  if (!connections) fail("out of memory");
  return connections;
}

// ---- WebSocket (RFC 6455), as a client needs it

enum { TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9 };

// The key and its answer are the example of RFC 6455 section 1.3.
static void send_upgrade(Connection *c) {
  char request[1024];
  int size = snprintf(request, sizeof request,
                      "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                      c->path, port);
  c->phase = HANDSHAKE;
  send_all(c, request, size);
}

static uint8_t payload[MAX_MESSAGE], frame[MAX_FRAME];  // what a mode sends
static size_t frame_size;

static size_t make_frame(uint8_t *to, int opcode, const void *data, size_t size) {  // masked
  static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
  size_t head = 0;
  to[head++] = 0x80 | opcode;
  if (size < 126) {
    to[head++] = 0x80 | size;
  } else if (size < 65536) {
    to[head++] = 0x80 | 126;
    to[head++] = size >> 8;
    to[head++] = size;
  } else {
    to[head++] = 0x80 | 127;
    for (int shift = 56; shift >= 0; shift -= 8) to[head++] = (uint64_t)size >> shift;
  }
  memcpy(to + head, mask, 4);
  head += 4;
  for (size_t i = 0; i < size; i++) to[head + i] = ((const uint8_t *)data)[i] ^ mask[i & 3];
  return head + size;
}

static size_t parse_handshake(Connection *c, const uint8_t *bytes, size_t size) {
  static const char status[] = "HTTP/1.1 101", accept[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
  const uint8_t *end = memmem(bytes, size, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = end + 4 - bytes;
  if (memcmp(bytes, status, strlen(status)) || !memmem(bytes, head, accept, strlen(accept)))
    fail("bad handshake at %s: %.*s", c->path, (int)(size > 200 ? 200 : size), (const char *)bytes);
  c->phase = OPEN;
  if (on.opened) on.opened(c);
  return head;
}

static size_t take_part(Connection *c, const uint8_t *bytes, size_t size) {
  if (size > c->missing) size = c->missing;
  c->missing -= size;
  on.part(c, bytes, size);
  return size;
}

static size_t parse_websocket(Connection *c, const uint8_t *bytes, size_t size) {
  size_t taken = 0;
  if (c->phase == HANDSHAKE) {
    taken = parse_handshake(c, bytes, size);
    if (!taken) return 0;
  }
  if (c->missing) taken += take_part(c, bytes, size);
  while (c->phase != FREE && c->phase != CONNECTING && size - taken >= 2) {
    const uint8_t *next = bytes + taken;
    bool is_data = next[0] == (0x80 | TEXT) || next[0] == (0x80 | BINARY);
    size_t head = 2, length = next[1] & 127;
    if (length >= 126) {
      head = length == 126 ? 4 : 10;
      if (size - taken < head) break;
      length = 0;
      for (size_t i = 2; i < head; i++) length = length << 8 | next[i];
    }
    if (is_data && on.part) {
      taken += head;
      c->received = 0;
      c->missing = length;
      taken += take_part(c, next + head, size - taken);
      continue;
    }
    if (size - taken < head + length) break;
    taken += head + length;
    if (is_data) {
      if (on.message) on.message(c, next + head, length);
    } else if (next[0] == (0x80 | PING)) {
      if (c->sent && c->sent < frame_size) fail("a Ping while a message is on its way: no place for the Pong");
      uint8_t pong[140];
      send_all(c, pong, make_frame(pong, 10, next + head, length));
    } else if (next[0] == (0x80 | CLOSE)) {
      close_code = length >= 2 ? next[head] << 8 | next[head + 1] : 0;
      on.closed(c);
    } else {
      fail("unexpected frame 0x%02x", next[0]);
    }
  }
  return taken;
}

static void be_websocket(void) {
  on.connected = send_upgrade;
  on.parse = parse_websocket;
  on.closed = closed_unexpectedly;
}

static int opened_count;

static void count_opened(Connection *c) {
  (void)c;
  opened_count++;
}

static double open_all(Connection *connections, int count, const char *to) {
  uint64_t start_time = now(), progress = start_time;
  int started = 0, before = 0;
  opened_count = 0;
  on.opened = count_opened;
  while (opened_count < count) {
    while (started < count && started - opened_count < OPENING_AT_ONCE) start(&connections[started++], to);
    run_once();
    if (opened_count != before) {
      before = opened_count;
      progress = now();
    }
    if (seconds_since(progress) > PATIENCE) fail("no handshake answered for %.0f s", PATIENCE);
  }
  on.opened = NULL;
  return seconds_since(start_time);
}

// ---- echo

static bool send_rest(Connection *c) {  // what the socket takes now; whether that was all
  while (c->sent < frame_size) {
    ssize_t n = send(c->fd, frame + c->sent, frame_size - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return false;
    if (n < 0) fail("send: %s", strerror(errno));
    c->sent += n;
  }
  return true;
}

static void send_echo(Connection *c) {
  c->started = now();
  c->sent = 0;
  if (!send_rest(c)) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

static void echo_writable(Connection *c) {
  if (send_rest(c)) watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void echo_part(Connection *c, const uint8_t *part, size_t size) {
  size_t total = c->received + size + c->missing;
  if (total != (size_t)message_size) fail("an echo of %zu bytes instead of %d", total, message_size);
  if (memcmp(part, payload + c->received, size)) fail("the echo is not what was sent");
  c->received += size;
  if (c->missing) return;
  complete(read_at - c->started);
  send_echo(c);
}

static void run_echo(void) {
  for (int i = 0; i < message_size; i++) payload[i] = 'a' + i % 26;
  frame_size = make_frame(frame, is_binary ? BINARY : TEXT, payload, message_size);
  be_websocket();
  Connection *connections = new_connections(connection_count);
  open_all(connections, connection_count, path);
  run_for(0.1);
  on.part = echo_part;
  on.writable = echo_writable;
  for (int i = 0; i < connection_count; i++) send_echo(&connections[i]);
  Elapsed elapsed = measure();
  print_rate("echo", completed, elapsed, "");
}

// ---- http

enum { REQUEST_HEAD_SIZE = 1024 };
static char request[REQUEST_HEAD_SIZE + MAX_MESSAGE];
static size_t request_size;
static long sent, answers;  // requests and their responses, since the beginning

static void make_get(void) {
  request_size =
      snprintf(request, REQUEST_HEAD_SIZE, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", path, port);
}

static size_t make_post_head(char *to, const char *target) {
  return snprintf(to, REQUEST_HEAD_SIZE,
                  "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                  "Content-Length: %d\r\n\r\n",
                  target, port, message_size);
}

static void send_request(Connection *c) {
  c->phase = OPEN;
  c->started = now();
  sent++;
  send_all(c, request, request_size);
}

static void http_closed(Connection *c) { fail("the server closed without an answer at %s", c->path); }

// The size of the head that the bytes begin with, 0: more is to come. What it says about the body goes to `c`.
static size_t take_head(Connection *c, const uint8_t *bytes, size_t size) {
  static const char status[] = "HTTP/1.1 2", length_name[] = "\r\ncontent-length:";
  const uint8_t *end = memmem(bytes, size, "\r\n\r\n", 4);
  if (!end) return 0;
  char head[4096];
  size_t head_size = end + 4 - bytes;
  if (memcmp(bytes, status, strlen(status)) || head_size >= sizeof head)
    fail("expected 2xx at %s, got: %.*s", c->path, (int)(size > 200 ? 200 : size), (const char *)bytes);
  memcpy(head, bytes, head_size);
  head[head_size] = 0;
  const char *length = strcasestr(head, length_name);
  c->missing = length ? strtoul(length + strlen(length_name), NULL, 10) : 0;
  c->is_chunked = strcasestr(head, "\r\ntransfer-encoding: chunked");
  c->is_last = strcasestr(head, "\r\nconnection: close");  // servers limit the requests on one connection
  if (kind != EVENTS && !length) fail("a response without Content-Length at %s", c->path);
  return head_size;
}

// Takes what is there of one response, whose body is not kept. Whether that was all of it: `is_complete`.
static size_t take_response(Connection *c, const uint8_t *bytes, size_t size, bool *is_complete) {
  size_t taken = 0;
  *is_complete = false;
  if (!c->missing) {
    taken = take_head(c, bytes, size);
    if (!taken) return 0;
  }
  size_t part = size - taken < c->missing ? size - taken : c->missing;
  c->missing -= part;
  if (measuring) body_bytes += part;
  *is_complete = !c->missing;
  return taken + part;
}

static size_t parse_http(Connection *c, const uint8_t *bytes, size_t size) {
  bool is_complete;
  size_t taken = take_response(c, bytes, size, &is_complete);
  if (!is_complete) return taken;
  answers++;
  complete(read_at - c->started);
  if (c->is_last) {
    drop(c);
    start(c, c->path);
  } else {
    on.connected(c);
  }
  return taken;
}

// At a fixed rate: connections wait in a ring until a request is due.
static Connection **free_ring;
static long free_first, free_end;  // the connections that are free are those between the two, modulo their number
static uint64_t pace_began;
static long pace_sent, pace_all;

static void wait_for_turn(Connection *c) {
  c->phase = OPEN;
  free_ring[free_end++ % connection_count] = c;
}

static void keep_pace(void) {
  while (pace_sent < pace_all && free_first < free_end) {
    uint64_t due = pace_began + pace_sent * 1e9 / rate;
    if (now() < due) return;
    Connection *c = free_ring[free_first++ % connection_count];
    send_request(c);
    c->started = due;
    pace_sent++;
  }
}

static bool pace_is_done(void) { return pace_sent == pace_all && answers == sent; }

static bool all_are_free(void) { return free_end - free_first == connection_count; }

static Elapsed measure_pace(double duration) {
  pace_sent = 0;
  pace_all = duration * rate + 0.5;
  pace_began = now();
  double cpu_before = server_cpu_seconds();
  on.turn = keep_pace;
  run_until(pace_is_done, "the last responses");
  on.turn = NULL;
  return (Elapsed){.wall = seconds_since(pace_began), .server_cpu = server_cpu_seconds() - cpu_before};
}

static void print_http(const char *mode, Elapsed elapsed) {
  char more[100];
  snprintf(more, sizeof more, ", \"bytes\": %ld", body_bytes);
  print_rate(mode, completed, elapsed, more);
}

static void run_http(void) {
  make_get();
  on.parse = parse_http;
  on.closed = http_closed;
  on.connected = rate ? wait_for_turn : send_request;
  Connection *connections = new_connections(connection_count);
  free_ring = calloc(connection_count, sizeof *free_ring);
  if (!free_ring) fail("out of memory");
  for (int i = 0; i < connection_count; i++) start(&connections[i], path);
  if (rate) {
    run_until(all_are_free, "connections");
    measure_pace(warm_up);
    measuring = true;
    print_http("http", measure_pace(seconds));
  } else {
    print_http("http", measure());
  }
}

// ---- event streams (https://html.spec.whatwg.org/multipage/server-sent-events.html), as fan and idle need them

static void send_events_request(Connection *c) {
  c->phase = HANDSHAKE;
  send_all(c, request, request_size);
}

// A chunk ends with an event, or has comments alone. An event has one line of data.
static void take_lines(Connection *c, const uint8_t *bytes, size_t size) {
  bool has_data = false;
  bool is_whole = size >= 2 && bytes[size - 1] == '\n' && bytes[size - 2] == '\n';
  for (const uint8_t *end; (end = memchr(bytes, '\n', size)); bytes = end + 1) {
    size_t line = end - bytes;
    if (line >= 5 && !memcmp(bytes, "data:", 5)) {
      has_data = true;
      if (on.message) on.message(c, bytes, line);
    }
    size -= line + 1;
  }
  if (size || (has_data && !is_whole)) fail("an event that does not end within its chunk at %s", c->path);
}

static size_t parse_events(Connection *c, const uint8_t *bytes, size_t size) {
  size_t taken = 0;
  if (c->phase == HANDSHAKE) {
    taken = take_head(c, bytes, size);
    if (!taken) return 0;
    if (!c->is_chunked) fail("an event stream without chunks at %s", c->path);
    c->phase = OPEN;
    if (on.opened) on.opened(c);
  }
  for (const uint8_t *end; (end = memmem(bytes + taken, size - taken, "\r\n", 2));) {
    size_t chunk = strtoul((const char *)bytes + taken, NULL, 16), head = end + 2 - (bytes + taken);
    if (!chunk) fail("the server ended an event stream at %s", c->path);
    if (size - taken < head + chunk + 2) break;
    take_lines(c, end + 2, chunk);
    taken += head + chunk + 2;
  }
  return taken;
}

static void be_subscribers(void) {  // of `kind`
  be_websocket();
  make_get();
  if (kind == EVENTS) {
    on.connected = send_events_request;
    on.parse = parse_events;
  }
}

// ---- connect

static void connect_opened(Connection *c) {
  complete(now() - c->started);
  send_all(c, frame, frame_size);
  c->phase = CLOSING;
}

static void connect_closed(Connection *c) {
  if (c->phase != CLOSING) closed_unexpectedly(c);
  drop(c);
  start(c, path);
}

static void run_connect(void) {
  static const uint8_t normal_closure[] = {1000 >> 8, 1000 & 255};
  frame_size = make_frame(frame, CLOSE, normal_closure, sizeof normal_closure);
  be_websocket();
  on.opened = connect_opened;
  on.closed = connect_closed;
  Connection *connections = new_connections(connection_count);
  for (int i = 0; i < connection_count; i++) start(&connections[i], path);
  Elapsed elapsed = measure();
  print_rate("connect", completed, elapsed, "");
}

// ---- idle

static size_t parse_idle_http(Connection *c, const uint8_t *bytes, size_t size) {
  bool is_complete;
  size_t taken = take_response(c, bytes, size, &is_complete);
  if (is_complete && c->is_last) fail("the server does not keep a connection to %s", c->path);
  if (is_complete) on.opened(c);
  return taken;
}

static void run_idle(void) {
  be_subscribers();
  if (kind == HTTP) {
    on.connected = send_request;
    on.parse = parse_idle_http;
  }
  double opened_in = open_all(new_connections(connection_count), connection_count, path);
  printf("{\"mode\": \"idle\", \"connections\": %d, \"opened_in_s\": %.2f}\n", connection_count, opened_in);
  fflush(stdout);
  struct pollfd input = {.fd = 0, .events = POLLIN};
  while (poll(&input, 1, 20) == 0) run_once();
}

// ---- fan: every message carries its number, "#00000001"; each subscriber must get each number once, in order

enum { NUMBER_SIZE = 9, SLOTS = 2 * MAX_IN_FLIGHT, BATCH_SIZE = 32768 };
static struct {
  uint64_t started;
  int missing;
} published[SLOTS];  // by number, modulo SLOTS
static uint32_t last_published;
static int to_publish, incomplete;
static long deliveries;
static Connection publisher, *subscribers;
static uint8_t *number_in_payload = payload;

// What the slow ones found when they read at last.
static int finished_count, too_slow_count, cut_count;  // have the last message; were closed with 1013, or otherwise
static long lost, markers;                             // messages; gap markers

static uint32_t number_of(const uint8_t *message, size_t size) {
  const uint8_t *mark = memchr(message, '#', size);  // the server may wrap the message
  if (!mark || message + size - mark < NUMBER_SIZE) fail("a message without its number");
  uint32_t number = 0;
  for (int i = 1; i < NUMBER_SIZE; i++) number = number * 10 + (mark[i] - '0');
  return number;
}

static void number_next(void) {
  char number[16];
  snprintf(number, sizeof number, "#%08u", ++last_published);
  memcpy(number_in_payload, number, NUMBER_SIZE);
}

static void lay_out_payload(void) {
  static const char before[] = "{\"text\":\"", after[] = "\"}";
  int least = NUMBER_SIZE + (is_json ? strlen(before) + strlen(after) : 0);
  if (message_size < least) fail("-s: at least %d bytes, for the number", least);
  memset(payload, 'x', message_size);
  if (!is_json) return;
  memcpy(payload, before, strlen(before));
  memcpy(payload + message_size - strlen(after), after, strlen(after));
  number_in_payload = payload + strlen(before);
}

static void stalled_message(Connection *c, uint32_t number) {
  if (number <= c->sequence) fail("message %u came after %u", number, c->sequence);
  lost += number - c->sequence - 1;
  c->sequence = number;
  if (number == last_published) finished_count++;
}

static void stalled_closed(Connection *c) {
  if (!c->is_slow) closed_unexpectedly(c);
  close_code == 1013 ? too_slow_count++ : cut_count++;
  drop(c);
}

static void fan_message(Connection *c, const uint8_t *message, size_t size) {
  if (c == &publisher || (*opening && !memchr(message, '#', size))) return;
  uint32_t number = number_of(message, size);
  if (c->is_slow) {
    stalled_message(c, number);
    return;
  }
  if (number != c->sequence + 1) fail("message %u came after %u", number, c->sequence);
  c->sequence = number;
  if (measuring) deliveries++;
  uint64_t latency = read_at - published[number % SLOTS].started;
  if (rate) complete(latency);
  if (--published[number % SLOTS].missing) return;
  incomplete--;
  if (!rate) {
    complete(latency);
    to_publish++;
  }
}

static void begin_message(void) {
  number_next();
  int *missing = &published[last_published % SLOTS].missing;
  if (*missing) fail("the server is %d messages behind", SLOTS);
  *missing = connection_count - stalled_count;
  published[last_published % SLOTS].started = now();
  incomplete++;
}

static void publish(void) {  // all that is due, in as few writes as possible
  static uint8_t batch[BATCH_SIZE + MAX_FRAME];
  size_t size = 0;
  for (; to_publish; to_publish--) {
    begin_message();
    size += make_frame(batch + size, TEXT, payload, message_size);
    if (size > BATCH_SIZE || to_publish == 1) {
      send_all(&publisher, batch, size);
      size = 0;
    }
  }
}

static bool is_answer_due;

static void post_next(void) {
  static char post[REQUEST_HEAD_SIZE + MAX_MESSAGE];
  if (!to_publish || is_answer_due || publisher.phase != OPEN) return;
  to_publish--;
  begin_message();
  size_t size = make_post_head(post, publish_path);
  memcpy(post + size, payload, message_size);
  send_all(&publisher, post, size + message_size);
  is_answer_due = true;
}

static void publisher_connected(Connection *c) {
  if (is_json)
    c->phase = OPEN;
  else
    send_upgrade(c);
}

static size_t parse_publisher(Connection *c, const uint8_t *bytes, size_t size) {
  if (!is_json) return parse_websocket(c, bytes, size);
  bool is_complete;
  size_t taken = take_response(c, bytes, size, &is_complete);
  if (!is_complete) return taken;
  is_answer_due = false;
  if (c->is_last) {
    drop(c);
    start(c, publish_path);
  }
  return taken;
}

static void fan_connected(Connection *c) {
  if (c == &publisher)
    publisher_connected(c);
  else
    (kind == EVENTS ? send_events_request : send_upgrade)(c);
}

static size_t parse_fan(Connection *c, const uint8_t *bytes, size_t size) {
  if (c == &publisher) return parse_publisher(c, bytes, size);
  return (kind == EVENTS ? parse_events : parse_websocket)(c, bytes, size);
}

static uint64_t rate_began;

static void keep_rate(void) {
  uint32_t due = seconds_since(rate_began) * rate + 1, all = seconds * rate + 0.5;
  if (due > all) due = all;
  if (due > last_published + to_publish) to_publish = due - last_published;
  (is_json ? post_next : publish)();
}

static bool rate_is_done(void) { return last_published >= (uint32_t)(seconds * rate + 0.5) && !incomplete; }

static Elapsed measure_rate(void) {
  measuring = true;
  rate_began = now();
  double cpu_before = server_cpu_seconds();
  on.turn = keep_rate;
  run_until(rate_is_done, "the last deliveries");
  Elapsed elapsed = {.wall = seconds_since(rate_began), .server_cpu = server_cpu_seconds() - cpu_before};
  measuring = false;
  return elapsed;
}

static bool stalled_are_done(void) { return finished_count + too_slow_count + cut_count == stalled_count; }

static void run_fan(void) {
  lay_out_payload();
  be_subscribers();
  on.connected = fan_connected;
  on.parse = parse_fan;
  on.message = fan_message;
  subscribers = new_connections(connection_count);
  for (int i = 0; i < stalled_count; i++) subscribers[i].is_slow = true;
  open_all(subscribers, connection_count, path);
  for (int i = 0; *opening && i < connection_count; i++)
    send_all(&subscribers[i], frame, make_frame(frame, TEXT, (const uint8_t *)opening, strlen(opening)));
  for (int i = 0; i < stalled_count; i++) watch(&subscribers[i], EPOLL_CTL_DEL, 0);
  if (is_json) {
    start(&publisher, publish_path);
  } else {
    open_all(&publisher, 1, publish_path);
  }
  run_for(*opening ? 2 : 0.3);
  Elapsed elapsed;
  if (rate) {
    elapsed = measure_rate();
  } else {
    to_publish = in_flight;
    on.turn = is_json ? post_next : publish;
    elapsed = measure();
  }
  char more[200] = "";
  if (stalled_count) {
    on.turn = NULL;
    on.closed = stalled_closed;
    for (int i = 0; i < stalled_count; i++) watch(&subscribers[i], EPOLL_CTL_ADD, EPOLLIN);
    run_until(stalled_are_done, "the last message or the end of stalled connections");
    snprintf(more, sizeof more,
             ", \"published\": %u, \"stalled\": {\"finished\": %d, \"closed_1013\": %d, \"cut\": %d, \"lost\": %ld}",
             last_published, finished_count, too_slow_count, cut_count, lost);
  }
  print_rate("fan", deliveries, elapsed, more);
}

// ---- post: the message of each POST carries the number of its connection, and a subscriber must receive it

static Connection listener, *posters;
static bool is_stopping;

static void post_number(Connection *c) {
  char number[16];
  snprintf(number, sizeof number, "#%08u", (unsigned)(c - posters));
  memcpy(request + request_size - message_size + (number_in_payload - payload), number, NUMBER_SIZE);
  c->is_answered = false;
  c->is_heard = !*publish_path;
  send_request(c);
}

static void post_connected(Connection *c) {
  if (c == &listener) {
    send_upgrade(c);
  } else {
    c->phase = OPEN;
    c->is_answered = c->is_heard = true;
    if (!is_stopping) post_number(c);
  }
}

static void finish_post(Connection *c) {
  if (!c->is_answered || !c->is_heard) return;
  answers++;
  complete(read_at - c->started);
  if (c->is_last) {
    drop(c);
    start(c, path);
  } else if (!is_stopping) {
    post_number(c);
  }
}

static void listener_message(Connection *c, const uint8_t *message, size_t size) {
  uint32_t number = number_of(message, size);
  if (c != &listener || number >= (uint32_t)connection_count || posters[number].is_heard)
    fail("message %u was not sent, or came twice", number);
  posters[number].is_heard = true;
  finish_post(&posters[number]);
}

static size_t parse_post(Connection *c, const uint8_t *bytes, size_t size) {
  if (c == &listener) return parse_websocket(c, bytes, size);
  bool is_complete;
  size_t taken = take_response(c, bytes, size, &is_complete);
  if (is_complete) {
    c->is_answered = true;
    finish_post(c);
  }
  return taken;
}

static void post_closed(Connection *c) {
  if (c == &listener) closed_unexpectedly(c);
  if (!c->is_answered) http_closed(c);
  watch(c, EPOLL_CTL_DEL, 0);  // the message is still to come: then it begins anew
}

static bool posts_are_done(void) { return answers == sent; }

static void run_post(void) {
  is_json = true;
  lay_out_payload();
  request_size = make_post_head(request, path);
  memcpy(request + request_size, payload, message_size);
  request_size += message_size;
  be_websocket();
  on.connected = post_connected;
  on.parse = parse_post;
  on.message = listener_message;
  on.closed = post_closed;
  if (*publish_path) open_all(&listener, 1, publish_path);
  posters = new_connections(connection_count);
  for (int i = 0; i < connection_count; i++) start(&posters[i], path);
  Elapsed elapsed = measure();
  is_stopping = true;
  run_until(posts_are_done, "the last responses, and a message for each");
  print_http("post", elapsed);
}

// ---- flood

enum { PIECE = 1024 };  // bytes that a slow subscriber reads at once
static long flood_received, pieces;
static uint64_t flood_began;
static size_t flood_size, flood_sent;
static bool is_flooding, is_sync_due;  // ends each batch: what the app has not taken waits here, not in the kernel

static void flood_message(Connection *c, const uint8_t *message, size_t size) {
  if (c == &publisher) {
    is_sync_due = false;
    return;
  }
  if (memmem(message, size, "\"gap\"", 5)) {
    markers++;
    c->is_warned = true;
    return;
  }
  uint32_t number = number_of(message, size);
  if (number <= c->sequence) fail("message %u came after %u", number, c->sequence);
  bool is_first = c->came_back && !c->sequence;
  if (number != c->sequence + 1 && !is_first) {
    if (!c->is_warned) fail("message %u came after %u, and no gap marker between them", number, c->sequence);
    lost += number - c->sequence - 1;
  }
  c->is_warned = false;
  c->sequence = number;
  flood_received++;
}

static void flood_closed(Connection *c) {
  stalled_closed(c);
  c->came_back = true;
  c->is_warned = false;
  start(c, path);
}

static void read_in_pieces(Connection *c) { watch(c, EPOLL_CTL_DEL, 0); }

static void flood_turn(void) {
  static uint8_t batch[BATCH_SIZE + 2 * MAX_FRAME];
  for (long due = seconds_since(flood_began) * bytes_a_second / PIECE * connection_count; pieces < due; pieces++) {
    Connection *c = &subscribers[pieces % connection_count];
    if (c->phase == OPEN) readable(c);
  }
  if (flood_sent == flood_size) {
    if (!is_flooding || is_sync_due) return;
    for (flood_sent = flood_size = 0; flood_size < BATCH_SIZE;) {
      number_next();
      flood_size += make_frame(batch + flood_size, TEXT, payload, message_size);
    }
    flood_size += make_frame(batch + flood_size, TEXT, "sync", 4);
    is_sync_due = true;
  }
  ssize_t n = send(publisher.fd, batch + flood_sent, flood_size - flood_sent, MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN) fail("send: %s", strerror(errno));
  if (n > 0) flood_sent += n;
}

static bool flood_is_taken(void) { return !is_sync_due; }

static bool is_quiet(void) {  // two seconds without a byte
  static long last = -1;
  static uint64_t since;
  if (reads != last) {
    last = reads;
    since = now();
  }
  return seconds_since(since) > 2;
}

static void run_flood(void) {
  if (bytes_a_second < 1) fail("-k: bytes that each subscriber reads a second");
  lay_out_payload();
  be_websocket();
  on.message = flood_message;
  on.closed = flood_closed;
  subscribers = new_connections(connection_count);
  for (int i = 0; i < connection_count; i++) subscribers[i].is_slow = true;
  open_all(subscribers, connection_count, path);
  for (int i = 0; i < connection_count; i++) read_in_pieces(&subscribers[i]);
  open_all(&publisher, 1, publish_path);
  on.opened = read_in_pieces;
  on.turn = flood_turn;
  most_at_once = PIECE;
  is_flooding = true;
  flood_began = now();
  run_for(seconds);
  double wall = seconds_since(flood_began);
  is_flooding = false;
  run_until(flood_is_taken, "the app to take what was published");
  on.turn = NULL;
  on.opened = NULL;
  most_at_once = READ_SIZE;
  for (int i = 0; i < connection_count; i++)
    if (subscribers[i].phase == OPEN) watch(&subscribers[i], EPOLL_CTL_ADD, EPOLLIN);
  run_until(is_quiet, "an end of the messages");
  for (int i = 0; i < connection_count; i++) {
    Connection *c = &subscribers[i];
    if (c->sequence == last_published)
      finished_count++;
    else if (c->sequence || !c->came_back)
      lost += last_published - c->sequence;
  }
  printf("{\"mode\": \"flood\", \"connections\": %d, \"wall_s\": %.4f, \"published\": %u, \"received\": %ld, "
         "\"finished\": %d, \"lost\": %ld, \"markers\": %ld, \"closed_1013\": %d, \"cut\": %d}\n",
         connection_count, wall, last_published, flood_received, finished_count, lost, markers, too_slow_count, cut_count);
}

// ----

static int usage(void) {
  fprintf(stderr,
          "usage: loadgen echo|http|post|connect|idle|fan|flood -p PORT -u PATH -c CONNECTIONS [-t SECONDS]\n"
          "               [-w WARM_UP_SECONDS] [-s MESSAGE_BYTES] [-b] [-r RATE] [-P SERVER_PID]...\n"
          "               [-K websocket|events|http]\n"
          "               [-U PUBLISH_PATH [-d IN_FLIGHT] [-J] [-O TEXT] [-x STALLED] [-k BYTES_A_SECOND]]\n");
  return 2;
}

int main(int count, char **arguments) {
  static const struct {
    const char *name;
    void (*run)(void);
  } modes[] = {{"echo", run_echo}, {"http", run_http}, {"post", run_post}, {"connect", run_connect},
               {"idle", run_idle}, {"fan", run_fan},   {"flood", run_flood}};
  static const char *const kinds[] = {[WEBSOCKET] = "websocket", [EVENTS] = "events", [HTTP] = "http"};
  void (*run)(void) = NULL;
  for (size_t i = 0; count > 1 && i < sizeof modes / sizeof *modes; i++)
    if (!strcmp(arguments[1], modes[i].name)) run = modes[i].run;
  if (!run) return usage();
  optind = 2;
  for (int option; (option = getopt(count, arguments, "p:u:U:c:d:t:w:s:bP:JO:r:x:k:K:")) != -1;) switch (option) {
      case 'p': port = atoi(optarg); break;
      case 'u': path = optarg; break;
      case 'U': publish_path = optarg; break;
      case 'c': connection_count = atoi(optarg); break;
      case 'd': in_flight = atoi(optarg); break;
      case 't': seconds = atof(optarg); break;
      case 'w': warm_up = atof(optarg); break;
      case 's': message_size = atoi(optarg); break;
      case 'b': is_binary = true; break;
      case 'J': is_json = true; break;
      case 'O': opening = optarg; break;
      case 'r': rate = atof(optarg); break;
      case 'x': stalled_count = atoi(optarg); break;
      case 'k': bytes_a_second = atof(optarg); break;
      case 'K':
        for (kind = WEBSOCKET; strcmp(optarg, kinds[kind]); kind++)
          if (kind == HTTP) return usage();
        break;
      case 'P':
        if (server_pid_count == MAX_SERVER_PROCESSES) return usage();
        server_pids[server_pid_count++] = atoi(optarg);
        break;
      default: return usage();
    }
  if (connection_count < 1 || in_flight < 1 || in_flight > MAX_IN_FLIGHT) return usage();
  if (message_size < 1 || message_size > MAX_MESSAGE) return usage();
  if (stalled_count < 0 || stalled_count >= connection_count || rate < 0) return usage();
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  epoll = epoll_create1(0);
  run();
  return 0;
}

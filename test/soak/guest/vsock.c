/* Sockets (virtio 1.2 §5.10). A connection to the host's CONTROL port reports what was done when a byte comes, and powers off at a 'q'.
 * Others to STREAM carry bytes that the host sends back, again and again from beginning to end. Those that the host makes to ECHO get
 * back what they bring. */
#include "guest.h"

enum { CONTROL = 1, STREAM = 2, ECHO = 7 };
enum { REQUEST = 1, RESPONSE, RESET, SHUTDOWN, DATA, UPDATE, ASK };
enum { HOST = 2, HALF = 2, BOTH = 3, PAYLOAD = 4096, ROOM = 32 << 10, STREAM_BYTES = 64 << 10, STREAMED = 2, CONNECTIONS = 16 };

struct packet {
	u64 from, to;
	u32 from_port, to_port, length;
	u16 type, op;
	u32 flags, room, taken;
	u8 payload[PAYLOAD];
} __attribute__((packed));

enum { HEADER = offsetof(struct packet, payload) };

enum state { FREE, CONNECTING, OPEN, ENDING };

struct connection {
	enum state state;
	u32 kind; /* CONTROL, STREAM or ECHO */
	u32 port, peer;
	u32 owed; /* a bit for each op that is to be sent */
	u32 sent, their_room, they_took;
	u32 got, took; /* bytes that came, and that were done with */
	u8 kept[ROOM];
};

static struct connection connections[CONNECTIONS];
static struct packet in[SLOTS], out[SLOTS];
static u64 events[4], cid;
static u32 last_port = 1 << 16;

static struct connection *lookup(u32 port, u32 peer)
{
	for (int i = 0; i < CONNECTIONS; i++)
		if (connections[i].state && connections[i].port == port && connections[i].peer == peer) return &connections[i];
	return NULL;
}

static struct connection *make(u32 kind, u32 port, u32 peer)
{
	for (int i = 0; i < CONNECTIONS; i++) {
		struct connection *c = &connections[i];
		if (c->state) continue;
		memset(c, 0, offsetof(struct connection, kept));
		c->kind = kind;
		c->port = port;
		c->peer = peer;
		c->state = kind == ECHO ? OPEN : CONNECTING;
		c->owed = 1u << (kind == ECHO ? RESPONSE : REQUEST);
		return c;
	}
	return NULL;
}

static int send(struct device *d, u32 port, u32 peer, u16 op, struct connection *c, u32 length)
{
	struct queue *q = &d->queues[1];
	int slot = free_slot(q);
	if (slot < 0) return 0;
	struct packet *p = &out[slot];
	memset(p, 0, HEADER);
	p->from = cid;
	p->to = HOST;
	p->from_port = port;
	p->to_port = peer;
	p->length = length;
	p->type = 1;
	p->op = op;
	p->flags = op != SHUTDOWN ? 0 : port & 1 ? HALF : BOTH; /* HALF: it sends no more, and waits for the host to close */
	p->room = ROOM;
	if (c) p->taken = c->took;
	put(q, slot, &(struct buffer){p, HEADER + length, 0}, 1);
	return 1;
}

/* payload is where the next packet's bytes go, if there is a slot for it. */
static u8 *payload(struct device *d)
{
	int slot = free_slot(&d->queues[1]);
	return slot < 0 ? NULL : out[slot].payload;
}

static u32 least(u32 a, u32 b) { return a < b ? a : b; }

/* credit is how much the other side takes now. */
static u32 credit(const struct connection *c) { return c->their_room - (c->sent - c->they_took); }

static int send_data(struct device *d, struct connection *c, u32 length)
{
	if (!send(d, c->port, c->peer, DATA, c, length)) return 0;
	c->sent += length;
	report.works[c->kind == ECHO ? ECHOES : STREAMS].requests++;
	return 1;
}

/* words makes, or judges, bytes of a stream: the word at each eighth of them follows from the port and its place. */
static u64 seed_at(const struct connection *c, u32 at) { return (u64)c->port << 32 | at; }

static void stream(struct device *d, struct connection *c)
{
	while (c->sent < STREAM_BYTES && c->sent - c->got < ROOM / 2) {
		u32 n = least(STREAM_BYTES - c->sent, PAYLOAD);
		u8 *to = payload(d);
		if (!to || credit(c) < n) return;
		for (u32 i = 0; i < n; i += 512) fill(to + i, 512, seed_at(c, c->sent + i));
		if (!send_data(d, c, n)) return;
	}
	if (c->got == STREAM_BYTES) {
		c->state = ENDING;
		c->owed |= 1u << SHUTDOWN;
	}
}

static void judge_stream(struct connection *c)
{
	for (; c->got - c->took >= 512; c->took += 512)
		if (!holds(c->kept + c->took % ROOM, 512, seed_at(c, c->took))) mismatch(STREAMS, seed_at(c, c->took));
}

static void echo(struct device *d, struct connection *c)
{
	while (c->got != c->took) {
		u32 n = least(least(c->got - c->took, PAYLOAD), least(credit(c), ROOM - c->took % ROOM));
		u8 *to = payload(d);
		if (!to || !n) return;
		copy(to, c->kept + c->took % ROOM, n);
		c->took += n;
		send_data(d, c, n);
	}
}

static void answer(struct device *d, struct connection *c)
{
	while (c->got != c->took) {
		u8 *to = payload(d);
		if (c->kept[c->took % ROOM] == 'q') ask(POWER_OFF, 0);
		if (!to || credit(c) < sizeof report) return;
		copy(to, &report, sizeof report);
		c->took++;
		send_data(d, c, sizeof report);
	}
}

static void end(struct connection *c, int wanted)
{
	if (!wanted) mismatch(c->kind == ECHO ? ECHOES : STREAMS, (u64)c->state << 32 | c->got);
	report.works[c->kind == ECHO ? ECHOES : STREAMS].rounds++;
	c->state = FREE;
	if (c->kind == STREAM) make(STREAM, ++last_port, STREAM);
}

/* advance does what a connection owes and can do now. */
static void advance(struct device *d, struct connection *c)
{
	for (u16 op = REQUEST; op <= UPDATE; op++)
		if (c->owed >> op & 1 && send(d, c->port, c->peer, op, c, 0)) {
			c->owed &= ~(1u << op);
			if (op == RESET) end(c, 1);
		}
	if (c->state != OPEN) return;
	switch (c->kind) {
	case CONTROL: answer(d, c); break;
	case STREAM:
		judge_stream(c);
		stream(d, c);
		break;
	case ECHO: echo(d, c); break;
	}
}

static void keep(struct connection *c, const struct packet *p)
{
	if (c->got - c->took + p->length > ROOM || c->state == CONNECTING) {
		mismatch(c->kind == ECHO ? ECHOES : STREAMS, (u64)c->state << 32 | p->length); /* more than it was allowed */
		return;
	}
	for (u32 i = 0, n; i < p->length; i += n, c->got += n) {
		n = least(p->length - i, ROOM - c->got % ROOM);
		copy(c->kept + c->got % ROOM, p->payload + i, n);
	}
}

static void receive(struct device *d, const struct packet *p)
{
	struct connection *c = lookup(p->to_port, p->from_port);
	if (!c && p->op == REQUEST && p->to_port == ECHO) c = make(ECHO, ECHO, p->from_port);
	if (!c) {
		if (p->op != RESET) send(d, p->to_port, p->from_port, RESET, NULL, 0);
		return;
	}
	c->their_room = p->room;
	c->they_took = p->taken;
	report.works[c->kind == ECHO ? ECHOES : STREAMS].requests++;
	switch (p->op) {
	case RESPONSE: c->state = OPEN; break;
	case DATA: keep(c, p); break;
	case ASK: c->owed |= 1u << UPDATE; break;
	case RESET: end(c, c->state == ENDING); break;
	case SHUTDOWN: /* the host is done: with an echo when it has got all back, with a stream when that was half closed */
		if (p->flags == BOTH && c->got == c->took && (c->kind == ECHO || c->state == ENDING)) c->owed |= 1u << RESET;
		break;
	}
}

/* begin makes the connections of a guest that has none. */
static void begin(struct device *d)
{
	cid = config64(d, 0);
	for (int i = 0; i < CONNECTIONS; i++) connections[i].state = FREE;
	make(CONTROL, ++last_port, CONTROL);
	for (int i = 0; i < STREAMED; i++) make(STREAM, ++last_port, STREAM);
}

static void serve(struct device *d)
{
	struct queue *q = &d->queues[0];
	u32 written;
	while (take(&d->queues[1], &written) >= 0) {}
	for (int slot; (slot = take(&d->queues[2], &written)) >= 0;) {
		/* the only event: the connections are gone, because this guest was a snapshot; buffers not needed come back empty */
		put(&d->queues[2], slot, &(struct buffer){&events[slot], sizeof events[slot], WRITE}, 1);
		if (!written) continue;
		if (written != 4 || (u32)events[slot]) fail();
		report.wakes++;
		begin(d);
	}
	for (int slot; (slot = take(q, &written)) >= 0;) {
		/* a device that is paused gives back empty what it has taken */
		if (written && (written < HEADER || written != HEADER + in[slot].length || in[slot].to != cid || in[slot].from != HOST)) fail();
		if (written) receive(d, &in[slot]);
		put(q, slot, &(struct buffer){&in[slot], sizeof in[slot], WRITE}, 1);
	}
	for (int i = 0; i < CONNECTIONS; i++)
		if (connections[i].state) advance(d, &connections[i]);
	for (int i = 0; i < 3; i++) kick(&d->queues[i]);
}

void start_vsock(struct device *d)
{
	negotiate(d, 0, 3);
	d->serve = serve;
	for (int slot = 0; slot < SLOTS; slot++) put(&d->queues[0], slot, &(struct buffer){&in[slot], sizeof in[slot], WRITE}, 1);
	for (int slot = 0; slot < 4; slot++) put(&d->queues[2], slot, &(struct buffer){&events[slot], sizeof events[slot], WRITE}, 1);
	kick(&d->queues[2]);
	begin(d);
	serve(d);
}

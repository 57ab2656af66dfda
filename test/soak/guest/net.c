/* The network (virtio 1.2 §5.1): frames of all lengths, which the host sends back as they are and in order. */
#include "guest.h"

enum { HEADER = 12, ADDRESSES = 14, SHORTEST = 64, LONGEST = 1504, WINDOW = 8, F_MAC = 1 << 5 };

struct packet {
	u8 header[HEADER], addresses[ADDRESSES], pad[6];
	u64 number, body[(LONGEST + 64) / 8];
};

static struct packet in[SLOTS], out[SLOTS];
static u8 mac[6];
static u64 sent, received, forgotten, wakes;

/* body is how many bytes of the frame with that number follow its own number. */
static u32 body(u64 number) { return SHORTEST + (u32)(number * 104 % (LONGEST - SHORTEST)) / 8 * 8 - 40; }

static u32 length(u64 number) { return offsetof(struct packet, body) + body(number); }

static void send(struct queue *q)
{
	while (sent - received < WINDOW) {
		int slot = free_slot(q);
		if (slot < 0) return;
		struct packet *p = &out[slot];
		memset(p->header, 0, HEADER);
		memset(p->addresses, 2, 6); /* to 02:02:02:02:02:02 */
		copy(p->addresses + 6, mac, 6);
		p->addresses[12] = 0x88; /* IEEE 802's local experimental type */
		p->addresses[13] = 0xb5;
		p->number = sent;
		fill(p->body, body(sent), sent);
		put(q, slot, &(struct buffer){p, length(sent), 0}, 1);
		sent++;
		report.works[NET].requests++;
	}
}

static void receive(struct queue *q)
{
	u32 written;
	for (int slot; (slot = take(q, &written)) >= 0;) {
		struct packet *p = &in[slot];
		report.works[NET].requests++;
		if (p->number < forgotten) {
			put(q, slot, &(struct buffer){p, sizeof *p, WRITE}, 1);
			continue;
		}
		if (received == sent || written != length(received) || p->number != received || p->addresses[13] != 0xb5 || p->addresses[11] != mac[5] ||
		    !holds(p->body, body(received), received))
			mismatch(NET, received << 16 | written);
		received++;
		report.works[NET].rounds++;
		put(q, slot, &(struct buffer){p, sizeof *p, WRITE}, 1);
	}
}

static void serve(struct device *d)
{
	u32 written;
	while (take(&d->queues[1], &written) >= 0) {}
	if (wakes != report.wakes) { /* what was under way when it fell asleep may be lost, and may not */
		wakes = report.wakes;
		forgotten = received = sent;
	}
	receive(&d->queues[0]);
	send(&d->queues[1]);
	kick(&d->queues[0]);
	kick(&d->queues[1]);
}

void start_net(struct device *d)
{
	negotiate(d, F_MAC, 2);
	d->serve = serve;
	for (int i = 0; i < 6; i++) mac[i] = d->regs[0x100 + i];
	for (int slot = 0; slot < SLOTS; slot++) put(&d->queues[0], slot, &(struct buffer){&in[slot], sizeof in[slot], WRITE}, 1);
	send(&d->queues[1]);
	kick(&d->queues[0]);
	kick(&d->queues[1]);
}

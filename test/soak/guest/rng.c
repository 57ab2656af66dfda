/* The entropy device (virtio 1.2 §5.4). */
#include "guest.h"

enum { USED_SLOTS = 4, LONGEST = 2048, EMPTY = 0 };

static u64 bytes[USED_SLOTS][LONGEST / 8];
static u64 rounds[USED_SLOTS];

static void send(struct queue *q, int slot)
{
	u32 length = 16u << rounds[slot] % 8;
	memset(bytes[slot], EMPTY, LONGEST);
	put(q, slot, &(struct buffer){bytes[slot], length, WRITE}, 1);
}

static void serve(struct device *d)
{
	struct queue *q = &d->queues[0];
	u32 written;
	for (int slot; (slot = take(q, &written)) >= 0;) {
		u32 length = 16u << rounds[slot] % 8;
		report.works[RNG].requests++;
		if (!written || written > length) mismatch(RNG, written);
		/* eight random bytes are zero once in 2^64 times; what was not asked for stays as it was */
		for (u32 i = 0; i < written / 8; i++)
			if (!bytes[slot][i]) mismatch(RNG, i);
		if (!all_zero((u8 *)bytes[slot] + length, LONGEST - length)) mismatch(RNG, length);
		rounds[slot]++;
		report.works[RNG].rounds++;
		send(q, slot);
	}
	kick(q);
}

void start_rng(struct device *d)
{
	negotiate(d, 0, 1);
	d->serve = serve;
	for (int slot = 0; slot < USED_SLOTS; slot++) send(&d->queues[0], slot);
	kick(&d->queues[0]);
}

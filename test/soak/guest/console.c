/* The console (virtio 1.2 §5.3): what comes in is judged and goes out again. The host sends lines of LINE bytes. */
#include "guest.h"

enum { LINE = 16, IN_SLOTS = 4 };

static u8 in[IN_SLOTS][LINE], out[SLOTS][LINE];
static u64 position; /* in the host's stream */

static u8 expected(u64 at)
{
	u64 line = at / LINE, column = at % LINE;
	return (u8)(column == LINE - 1 ? '\n' : 'a' + (line * 7 + column) % 26);
}

/* reap takes back what has been printed. */
static void reap(struct queue *output)
{
	u32 written;
	while (take(output, &written) >= 0)
		if (written) mismatch(CONSOLE, 1ull << 32 | written);
}

static void serve(struct device *d)
{
	struct queue *input = &d->queues[0], *output = &d->queues[1];
	u32 written;
	for (int slot; (slot = take(input, &written)) >= 0;) {
		reap(output); /* the host may be faster than this loop */
		int to = free_slot(output);
		if (to < 0 || !written || written > LINE) fail();
		for (u32 i = 0; i < written; i++, position++) {
			if (in[slot][i] != expected(position)) mismatch(CONSOLE, position);
			report.works[CONSOLE].rounds += position % LINE == LINE - 1;
		}
		report.works[CONSOLE].requests += 2;
		copy(out[to], in[slot], written);
		put(output, to, &(struct buffer){out[to], written, 0}, 1);
		put(input, slot, &(struct buffer){in[slot], LINE, WRITE}, 1);
		kick(output);
		kick(input);
	}
	reap(output);
}

void start_console(struct device *d)
{
	negotiate(d, 0, 2);
	d->serve = serve;
	for (int slot = 0; slot < IN_SLOTS; slot++) put(&d->queues[0], slot, &(struct buffer){in[slot], LINE, WRITE}, 1);
	kick(&d->queues[0]);
}

/* Persistent memory (virtio 1.2 §5.19): the host's file is read where it is mapped, between flushes. The seed of each page is its number; what
 * is mapped beyond the file's FILE_PAGES is zeros. */
#include "guest.h"

enum { USED_SLOTS = 2, PER_FLUSH = 4, FILE_PAGES = 512 };

static struct {
	u32 type, answer;
} requests[USED_SLOTS];
static u64 start, pages, next_page;

static void send(struct queue *q, int slot)
{
	requests[slot].answer = 1;
	struct buffer b[] = {{&requests[slot].type, 4, 0}, {&requests[slot].answer, 4, WRITE}};
	put(q, slot, b, 2);
}

static void serve(struct device *d)
{
	u32 written;
	for (int slot; (slot = take(&d->queues[0], &written)) >= 0;) {
		struct work *w = &report.works[PMEM];
		w->requests++;
		if (written != 4 || requests[slot].answer) mismatch(PMEM, 1ull << 63 | written);
		for (int i = 0; i < PER_FLUSH; i++, next_page = (next_page + 1) % pages) {
			void *at = (void *)(start + next_page * PAGE);
			if (!(next_page < FILE_PAGES ? holds(at, PAGE, next_page) : all_zero(at, PAGE))) mismatch(PMEM, next_page);
		}
		w->rounds++;
		send(&d->queues[0], slot);
	}
	kick(&d->queues[0]);
}

void start_pmem(struct device *d)
{
	negotiate(d, 0, 1);
	d->serve = serve;
	start = config64(d, 0);
	pages = config64(d, 8) / PAGE;
	if (pages < FILE_PAGES || start + pages * PAGE > 5ull << 30) fail();
	for (int slot = 0; slot < USED_SLOTS; slot++) send(&d->queues[0], slot);
	kick(&d->queues[0]);
}

/* The balloon (virtio 1.2 §5.5): pages are given and taken back as the host asks, free ones reported, statistics told. A page that the
 * host has had reads as zeros, unless this guest was a snapshot: then it may read as it was in that. */
#include "guest.h"

enum { F_STATISTICS = 1 << 1, F_REPORTING = 1 << 5, PAGES = 1024, BATCH = 64, FREE_SLOTS = 1, FREE = 4 * PAGE };

static u8 arena[PAGES][PAGE] __attribute__((aligned(PAGE)));
static u8 spare[FREE_SLOTS][FREE] __attribute__((aligned(PAGE)));
static u32 numbers[BATCH];
static u32 given, batch; /* pages; batch is on its way */

struct statistic {
	u16 tag;
	u64 value;
} __attribute__((packed));

static struct statistic statistics[2];

static void send_statistics(struct queue *q)
{
	statistics[0] = (struct statistic){4, (u64)(PAGES - given) * PAGE}; /* VIRTIO_BALLOON_S_MEMFREE */
	statistics[1] = (struct statistic){5, 64 << 20};		      /* VIRTIO_BALLOON_S_MEMTOT */
	put(q, 0, &(struct buffer){statistics, sizeof statistics, 0}, 1);
}

/* judge counts a page that came back with something in it. One of a snapshot may, and that the guest is one another processor hears, perhaps
   later: so it is counted some rounds on. */
static void judge(int work, int zero, u64 detail)
{
	enum { LATER = 8 };
	static u64 since[WORKS], first[WORKS]; /* since 0 is none */
	u64 round = report.works[work].rounds + 1;

	if (report.wakes) return;
	if (since[work] && round > since[work] + LATER) {
		mismatch(work, first[work]);
		since[work] = 0;
	}
	if (zero || since[work]) return;
	since[work] = round;
	first[work] = detail;
}

static void send_free(struct queue *q, int slot)
{
	fill(spare[slot], FREE, report.works[REPORTING].rounds);
	put(q, slot, &(struct buffer){spare[slot], FREE, WRITE}, 1);
}

/* resize sends the next batch towards what the host asks for. */
static void resize(struct device *d)
{
	u32 target = load(d->regs, 0x100);
	if (batch || target == given || target > PAGES) return;
	int inflate = target > given;
	u32 first = inflate ? given : target, count = inflate ? target - given : given - target;
	if (count > BATCH) first += inflate ? 0 : count - BATCH, count = BATCH;
	for (u32 i = 0; i < count; i++) {
		if (inflate) fill(arena[first + i], PAGE, first + i);
		numbers[i] = (u32)((u64)arena[first + i] / PAGE);
	}
	batch = count;
	put(&d->queues[!inflate], 0, &(struct buffer){numbers, 4 * count, 0}, 1);
	kick(&d->queues[!inflate]);
}

static void serve(struct device *d)
{
	struct work *w = &report.works[BALLOON];
	u32 written;
	if (take(&d->queues[0], &written) >= 0) {
		given += batch;
		batch = 0;
		w->requests++;
		store(d->regs, 0x104, given);
	}
	if (take(&d->queues[1], &written) >= 0) {
		given -= batch;
		for (u32 i = 0; i < batch; i++)
			judge(BALLOON, all_zero(arena[given + i], PAGE), given + i);
		batch = 0;
		w->requests++;
		w->rounds++;
		store(d->regs, 0x104, given);
	}
	resize(d);
	if (take(&d->queues[2], &written) >= 0) {
		report.works[STATISTICS].requests++;
		report.works[STATISTICS].rounds++;
		send_statistics(&d->queues[2]);
		kick(&d->queues[2]);
	}
	for (int slot; (slot = take(&d->queues[3], &written)) >= 0;) {
		report.works[REPORTING].requests++;
		report.works[REPORTING].rounds++;
		judge(REPORTING, all_zero(spare[slot], FREE), slot);
		send_free(&d->queues[3], slot);
		kick(&d->queues[3]);
	}
}

void start_balloon(struct device *d)
{
	negotiate(d, F_STATISTICS | F_REPORTING, 4);
	if (d->features != (F_STATISTICS | F_REPORTING)) fail();
	d->serve = serve;
	send_statistics(&d->queues[2]);
	kick(&d->queues[2]);
	for (int slot = 0; slot < FREE_SLOTS; slot++) send_free(&d->queues[3], slot);
	kick(&d->queues[3]);
	resize(d);
}

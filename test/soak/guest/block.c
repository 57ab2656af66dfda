/* The disks (virtio 1.2 §5.2). The writable one: each slot has a part of it for itself and goes through all requests there. The
 * read-only one has known bytes (the seed of each 4096 is their number), and refuses writes. */
#include "guest.h"

enum { LENGTH = 16 << 10, SECTORS = LENGTH / 512, PART = 8 * SECTORS, USED_SLOTS = 6 };
enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK = 0, IO_ERROR = 1, UNTOUCHED = 0xee };
enum { F_READ_ONLY = 1 << 5, F_FLUSH = 1 << 9, F_DISCARD = 1 << 13, F_WRITE_ZEROES = 1 << 14 };

struct request {
	struct {
		u32 type, reserved;
		u64 sector;
	} header;
	struct {
		u64 sector;
		u32 count, flags;
	} segment;
	u8 id[24];
	u8 status;
	u8 step;
	u64 round;
	u8 *data;
};

/* The steps of a round. What is read must be what the last write, discard or write-zeroes left. */
static const u8 steps[] = {OUT, FLUSH, IN, DISCARD, IN, OUT, WRITE_ZEROES, IN, GET_ID};
static const u8 zero_after[] = {0, 0, 0, 1, 1, 0, 1, 1, 1};

static struct request disk[USED_SLOTS], image[USED_SLOTS];
static u64 image_blocks;

static u64 seed(int slot, const struct request *r) { return r->round << 8 | (u64)slot; }

static void send(struct device *d, int slot, struct request *r, u32 type, u64 sector)
{
	struct buffer b[3] = {{&r->header, sizeof r->header, 0}};
	int n = 1;
	r->header.type = type;
	r->header.sector = type == IN || type == OUT ? sector : 0;
	r->status = UNTOUCHED;
	switch (type) {
	case IN:
		memset(r->data, 0xa5, LENGTH);
		b[n++] = (struct buffer){r->data, LENGTH, WRITE};
		break;
	case OUT: b[n++] = (struct buffer){r->data, LENGTH, 0}; break;
	case GET_ID:
		memset(r->id, 0xa5, sizeof r->id);
		b[n++] = (struct buffer){r->id, 20, WRITE};
		break;
	case DISCARD:
	case WRITE_ZEROES:
		r->segment.sector = sector;
		r->segment.count = SECTORS;
		r->segment.flags = type == WRITE_ZEROES ? r->round & 1 : 0; /* unmap, or not */
		b[n++] = (struct buffer){&r->segment, sizeof r->segment, 0};
	}
	b[n++] = (struct buffer){&r->status, 1, WRITE};
	put(&d->queues[0], slot, b, n);
}

static void send_step(struct device *d, int slot, struct request *r)
{
	if (steps[r->step] == OUT) fill(r->data, LENGTH, seed(slot, r));
	send(d, slot, r, steps[r->step], (u64)slot * PART + r->round % 8 * SECTORS);
}

static void judge_step(int slot, struct request *r, u32 written)
{
	u8 type = steps[r->step];
	u64 detail = r->round << 16 | (u64)r->step << 8 | r->status;
	u32 want = 1 + (type == IN ? LENGTH : type == GET_ID ? 20 : 0);
	if (r->status != OK || written != want) mismatch(DISK, detail);
	if (type == IN && !(zero_after[r->step] ? all_zero(r->data, LENGTH) : holds(r->data, LENGTH, seed(slot, r)))) mismatch(DISK, detail);
	if (type == GET_ID && (r->id[0] != 'd' || r->id[3] != 'k' || r->id[4] || r->id[20] != 0xa5)) mismatch(DISK, detail);
}

static void serve_disk(struct device *d)
{
	struct work *w = &report.works[DISK];
	u32 written;
	for (int slot; (slot = take(&d->queues[0], &written)) >= 0;) {
		struct request *r = &disk[slot];
		w->requests++;
		judge_step(slot, r, written);
		if (++r->step == sizeof steps) {
			r->step = 0;
			r->round++;
			w->rounds++;
		}
		send_step(d, slot, r);
	}
	kick(&d->queues[0]);
}

/* Every eighth request is a write. */
static void send_image(struct device *d, int slot, struct request *r)
{
	send(d, slot, r, r->round % 8 == 7 ? OUT : IN, r->round * USED_SLOTS % (image_blocks - 4) * 8);
}

static void serve_image(struct device *d)
{
	struct work *w = &report.works[IMAGE];
	u32 written;
	for (int slot; (slot = take(&d->queues[0], &written)) >= 0;) {
		struct request *r = &image[slot];
		w->requests++;
		if (r->header.type == OUT && (r->status != IO_ERROR || written != 1)) mismatch(IMAGE, r->status);
		if (r->header.type == IN && (r->status != OK || written != LENGTH + 1)) mismatch(IMAGE, r->round << 8 | r->status);
		for (u64 i = 0; i < LENGTH / PAGE && r->header.type == IN; i++)
			if (!holds(r->data + i * PAGE, PAGE, r->header.sector / 8 + i)) mismatch(IMAGE, r->round << 16 | i);
		r->round++;
		w->rounds++;
		send_image(d, slot, r);
	}
	kick(&d->queues[0]);
}

void start_block(struct device *d)
{
	negotiate(d, F_READ_ONLY | F_FLUSH | F_DISCARD | F_WRITE_ZEROES, 1);
	int writable = !(d->features & F_READ_ONLY);
	u64 sectors = config64(d, 0);
	if (sectors < USED_SLOTS * PART) fail();
	if (writable && d->features != (F_FLUSH | F_DISCARD | F_WRITE_ZEROES)) fail();
	d->serve = writable ? serve_disk : serve_image;
	if (!writable) image_blocks = sectors / 8;
	for (int slot = 0; slot < USED_SLOTS; slot++) {
		struct request *r = writable ? &disk[slot] : &image[slot];
		r->data = claim(LENGTH);
		if (!writable) r->round = (u64)slot;
		writable ? send_step(d, slot, r) : send_image(d, slot, r);
	}
	kick(&d->queues[0]);
}

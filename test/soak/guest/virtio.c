/* Registers (virtio 1.2 §4.2.2), queues (§2.7) and the bytes that go through them. */
#include "guest.h"

struct descriptor {
	u64 at;
	u32 length;
	u16 flags, next;
};

struct available {
	u16 flags, index, ring[QUEUE_SIZE];
};

struct used {
	u16 flags, index;
	struct {
		u32 id, length;
	} ring[QUEUE_SIZE];
};

#define BARRIER() __asm__ volatile("mfence" ::: "memory")

static u8 pages[4 << 20] __attribute__((aligned(PAGE)));
static u64 claimed;

void *claim(u64 size)
{
	size = (size + PAGE - 1) & ~(u64)(PAGE - 1);
	u64 at = __atomic_fetch_add(&claimed, size, __ATOMIC_RELAXED);
	if (at + size > sizeof pages) fail();
	return pages + at;
}

u32 load(volatile u8 *regs, u32 offset) { return *(volatile u32 *)(regs + offset); }

void store(volatile u8 *regs, u32 offset, u32 value) { *(volatile u32 *)(regs + offset) = value; }

u64 config64(struct device *d, u32 offset)
{
	return load(d->regs, 0x100 + offset) | (u64)load(d->regs, 0x104 + offset) << 32;
}

static void address(volatile u8 *regs, u32 offset, const void *at)
{
	store(regs, offset, (u32)(u64)at);
	store(regs, offset + 4, (u32)((u64)at >> 32));
}

static void make_queue(struct device *d, u32 number)
{
	struct queue *q = &d->queues[number];
	q->regs = d->regs;
	q->number = number;
	q->table = claim(QUEUE_SIZE * sizeof *q->table);
	q->available = claim(sizeof *q->available);
	q->used = claim(sizeof *q->used);
	store(d->regs, 0x30, number);
	u32 room = load(d->regs, 0x34);
	if (room < QUEUE_SIZE && room < 16) fail();
	store(d->regs, 0x38, room < QUEUE_SIZE ? 16 : QUEUE_SIZE);
	q->size = room < QUEUE_SIZE ? 16 : QUEUE_SIZE;
	address(d->regs, 0x80, q->table);
	address(d->regs, 0x90, q->available);
	address(d->regs, 0xa0, q->used);
	store(d->regs, 0x44, 1);
}

void negotiate(struct device *d, u32 wanted, int queues)
{
	enum { STATUS = 0x70, ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
	store(d->regs, STATUS, 0);
	store(d->regs, STATUS, ACKNOWLEDGE);
	store(d->regs, STATUS, ACKNOWLEDGE | DRIVER);
	store(d->regs, 0x14, 0);
	d->features = load(d->regs, 0x10) & wanted;
	store(d->regs, 0x24, 0);
	store(d->regs, 0x20, d->features);
	store(d->regs, 0x24, 1);
	store(d->regs, 0x20, 1); /* VERSION_1 */
	store(d->regs, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	for (int i = 0; i < queues; i++) make_queue(d, (u32)i);
	u32 all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
	store(d->regs, STATUS, all);
	if (load(d->regs, STATUS) != all) fail();
}

void put(struct queue *q, int slot, const struct buffer *buffers, int count)
{
	enum { NEXT = 1 };
	u16 head = (u16)(slot * CHAIN);
	if (q->busy >> slot & 1 || count > CHAIN || slot >= q->size / CHAIN) fail();
	for (int i = 0; i < count; i++) {
		u16 more = i + 1 < count ? NEXT : 0;
		q->table[head + i] = (struct descriptor){(u64)buffers[i].at, buffers[i].length, (u16)(buffers[i].flags | more), (u16)(head + i + 1)};
	}
	q->busy |= 1u << slot;
	q->available->ring[q->posted++ % q->size] = head;
	BARRIER();
	*(volatile u16 *)&q->available->index = q->posted;
}

void kick(struct queue *q)
{
	BARRIER();
	store(q->regs, 0x50, q->number);
}

int take(struct queue *q, u32 *written)
{
	if (*(volatile u16 *)&q->used->index == q->seen) return -1;
	BARRIER();
	u32 id = q->used->ring[q->seen % q->size].id;
	*written = q->used->ring[q->seen++ % q->size].length;
	if (id % CHAIN || id >= q->size || !(q->busy >> id / CHAIN & 1)) fail();
	q->busy &= ~(1u << id / CHAIN);
	return (int)(id / CHAIN);
}

int free_slot(struct queue *q)
{
	for (int s = 0; s < q->size / CHAIN; s++)
		if (!(q->busy >> s & 1)) return s;
	return -1;
}

static u64 next(u64 x) { return x * 6364136223846793005u + 1442695040888963407u; }

void fill(void *at, u64 bytes, u64 seed)
{
	u64 *w = at, x = next(seed);
	for (u64 i = 0; i < bytes / 8; i++, x = next(x)) w[i] = x;
}

int holds(const void *at, u64 bytes, u64 seed)
{
	const u64 *w = at;
	u64 x = next(seed), wrong = 0;
	for (u64 i = 0; i < bytes / 8; i++, x = next(x)) wrong |= w[i] ^ x;
	return !wrong;
}

int all_zero(const void *at, u64 bytes)
{
	const u64 *w = at;
	u64 any = 0;
	for (u64 i = 0; i < bytes / 8; i++) any |= w[i];
	return !any;
}

void copy(void *to, const void *from, u64 bytes)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

void *memcpy(void *to, const void *from, size_t bytes)
{
	copy(to, from, bytes);
	return to;
}

void *memset(void *at, int value, size_t bytes)
{
	void *to = at;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
	return at;
}

/* A bare-metal guest that keeps every device of its machine busy. Ring 0 only starts it, takes its interrupts and halts; the drivers
 * run in ring 3, which any KVM runs natively, and ask ring 0 for three things by int3 (start.S). */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum { PAGE = 4096, MAX_DEVICES = 18, FIRST_PIN = 5, FIRST_VECTOR = 0x30, MAX_CPUS = 2 };

/* What the host is told of one kind of work. A mismatch is anything that a driver may not see; detail says where the first was. */
struct work {
	char name[8];
	u64 rounds, requests, mismatches, detail;
};

enum { DISK, IMAGE, RNG, CONSOLE, STREAMS, ECHOES, BALLOON, REPORTING, STATISTICS, PMEM, NET, WORKS };

struct report {
	u64 magic; /* REPORT_MAGIC */
	u64 count; /* WORKS */
	u64 wakes; /* how often the guest was told that it had been a snapshot */
	struct work works[WORKS];
};

#define REPORT_MAGIC 0x6b616f7365726f70ull

extern struct report report;

void mismatch(int work, u64 detail);

/* Split virtqueues, virtio 1.2 §2.7. A chain has a slot, of CHAIN descriptors. */
enum { QUEUE_SIZE = 64, CHAIN = 4, SLOTS = QUEUE_SIZE / CHAIN, WRITE = 2 };

struct buffer {
	void *at;
	u32 length;
	u32 flags; /* WRITE: by the device */
};

struct queue {
	volatile u8 *regs;
	u32 number;
	u16 size, posted, seen;
	u32 busy; /* a bit for each slot that the device has */
	struct descriptor *table;
	struct available *available;
	struct used *used;
};

struct device {
	volatile u8 *regs;
	u32 features; /* the low half of those that were offered */
	struct queue queues[5];
	void (*serve)(struct device *);
};

u32 load(volatile u8 *regs, u32 offset);
void store(volatile u8 *regs, u32 offset, u32 value);
u64 config64(struct device *d, u32 offset);

/* negotiate takes a device from reset to DRIVER_OK with the features wanted that it offers, and so many queues. */
void negotiate(struct device *d, u32 wanted, int queues);

/* put gives the device a chain in a free slot; kick tells it. take returns the slot of a chain that is done, or -1. */
void put(struct queue *q, int slot, const struct buffer *buffers, int count);
void kick(struct queue *q);
int take(struct queue *q, u32 *written);
int free_slot(struct queue *q); /* or -1 */

void *claim(u64 size); /* zeroed pages, for ever */

/* fill writes words that follow from seed; holds reports whether they are there, all_zero whether there are none. */
void fill(void *at, u64 bytes, u64 seed);
int holds(const void *at, u64 bytes, u64 seed);
int all_zero(const void *at, u64 bytes);
void copy(void *to, const void *from, u64 bytes);
void *memset(void *at, int value, size_t bytes);

/* Of start.S: what ring 0 does for ring 3. */
enum { WAIT, POWER_OFF, PANIC };
void ask(u32 what, u64 with);
/* fail ends the machine in a panic: a device has broken its queue, or is not what it has to be. The VMM's counter port_unclaimed then is the
 * line of the source, or 1000 more than the vector of an exception. */
#define fail() fail_at(__LINE__)
_Noreturn void fail_at(u64 line);

/* Each starts a driver, which does the rest in the serve of its device. */
void start_net(struct device *d);
void start_block(struct device *d);
void start_console(struct device *d);
void start_rng(struct device *d);
void start_balloon(struct device *d);
void start_vsock(struct device *d);
void start_pmem(struct device *d);

#endif

/* What ring 0 prepares, and the loop of ring 3. */
#include "guest.h"

enum { STACK = 0x4000, TASK = 7, WINDOW = 0x1000, SECOND = 0x10000 };

#define DEVICES 0xd0000000ul
#define IOAPIC 0xfec00000ul
#define LAPIC 0xfee00000ul
#define CMDLINE ((const char *)0x20000) /* cpus=1, or 2 */

extern u64 gdt[], idt[];
extern u8 exceptions[], interrupts[], ring0_stacks[], second[], second_end[];
extern volatile u8 fired[];
extern volatile u32 pending[];

struct report report = {REPORT_MAGIC, WORKS, 0, {
	[DISK] = {.name = "disk"}, [IMAGE] = {.name = "image"}, [RNG] = {.name = "rng"}, [CONSOLE] = {.name = "console"},
	[STREAMS] = {.name = "streams"}, [ECHOES] = {.name = "echoes"}, [BALLOON] = {.name = "balloon"},
	[REPORTING] = {.name = "free"}, [STATISTICS] = {.name = "stats"}, [PMEM] = {.name = "pmem"}, [NET] = {.name = "net"},
}};

static struct device devices[MAX_DEVICES];
static u32 cpus = 1;
static u8 tasks[MAX_CPUS][104] __attribute__((aligned(16)));

static void register_write(u64 base, u32 offset, u32 value) { *(volatile u32 *)(base + offset) = value; }

static void gate(int vector, const u8 *to, int ring)
{
	u64 at = (u64)to;
	idt[2 * vector] = (at & 0xffff) | 0x10 << 16 | (0x8e00ull | (u64)ring << 13) << 32 | (at >> 16) << 48;
	idt[2 * vector + 1] = at >> 32;
}

/* prepare makes the tables of both processors, sends the devices' interrupts to the one and the other in turns, and starts the second. */
void prepare(void)
{
	for (int v = 0; v < 32; v++) gate(v, exceptions + 16 * v, v == 3 ? 3 : 0);
	for (int i = 0; i < MAX_DEVICES; i++) gate(FIRST_VECTOR + i, interrupts + 16 * i, 0);
	for (int cpu = 0; cpu < MAX_CPUS; cpu++) {
		u64 base = (u64)tasks[cpu], stack = (u64)ring0_stacks + (u64)(cpu + 1) * STACK;
		*(u32 *)(tasks[cpu] + 4) = (u32)stack;
		gdt[TASK + 2 * cpu] = 103 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24) << 56;
	}
	if (CMDLINE[0] == 'c' && CMDLINE[5] == '2') cpus = 2;
	register_write(LAPIC, 0xf0, 0x1ff); /* on, spurious interrupts to 0xff */
	for (u32 i = 0; i < MAX_DEVICES; i++) {
		u32 pin = FIRST_PIN + i;
		register_write(IOAPIC, 0, 0x11 + 2 * pin);
		register_write(IOAPIC, 0x10, i % cpus << 24);
		register_write(IOAPIC, 0, 0x10 + 2 * pin);
		register_write(IOAPIC, 0x10, FIRST_VECTOR + i); /* fixed, edge, not masked */
	}
	if (cpus == 1) return;
	copy((void *)SECOND, second, (u64)(second_end - second));
	for (u32 command = 0x4500; command <= 0x4600; command += 0x100) { /* INIT, and start-up at a page */
		register_write(LAPIC, 0x310, 1 << 24);
		register_write(LAPIC, 0x300, command | (command == 0x4600 ? SECOND / PAGE : 0));
	}
}

static void start(struct device *d)
{
	enum { NET_ID = 1, BLOCK_ID, CONSOLE_ID, RNG_ID, BALLOON_ID, VSOCK_ID = 19, PMEM_ID = 27 };
	switch (load(d->regs, 0x08)) {
	case NET_ID: start_net(d); break;
	case BLOCK_ID: start_block(d); break;
	case CONSOLE_ID: start_console(d); break;
	case RNG_ID: start_rng(d); break;
	case BALLOON_ID: start_balloon(d); break;
	case VSOCK_ID: start_vsock(d); break;
	case PMEM_ID: start_pmem(d); break;
	default: fail();
	}
}

/* work is ring 3: each processor starts its devices, then serves whichever has interrupted, for ever. */
_Noreturn void work(u64 cpu)
{
	for (u64 i = cpu; i < MAX_DEVICES; i += cpus) {
		struct device *d = &devices[i];
		d->regs = (volatile u8 *)(DEVICES + i * WINDOW);
		if (load(d->regs, 0) == 0x74726976) start(d);
	}
	for (;;) {
		pending[cpu] = 0;
		for (u64 i = cpu; i < MAX_DEVICES; i += cpus) {
			struct device *d = &devices[i];
			if (!fired[i]) continue;
			fired[i] = 0;
			if (!d->serve) fail();
			store(d->regs, 0x64, load(d->regs, 0x60)); /* InterruptACK */
			d->serve(d);
		}
		ask(WAIT, cpu);
	}
}

void mismatch(int work, u64 detail)
{
	if (!report.works[work].mismatches++) report.works[work].detail = detail;
}

_Noreturn void fail_at(u64 line)
{
	for (;;) ask(PANIC, line);
}

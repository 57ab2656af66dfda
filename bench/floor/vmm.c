// vmm.c is the jailed half of the floor: the calls that spore-vmm makes from its first instruction to the guest's first exit
// (cmd/spore-vmm, vmm/build.go, vmm/restore.go), in their order, for a bare-metal guest with one vCPU and a vsock device.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "floor.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif
#ifndef KVM_SET_SREGS2
struct kvm_sregs2 { char bytes[320]; };
#define KVM_SET_SREGS2 _IOW(KVMIO, 0xcd, struct kvm_sregs2)
#endif

enum { GUARD = 2 << 20, BLOCK = 2 << 20, DEVICE = 0xd0000000, KICK = 0x50, GSI = 5, LOG_TABLE = 0x100000, MAX_STATE = 2 << 20 };
enum tag { MACHINE = 1, BLOCKS, CHIP, CLOCK, MP, REGS, XSAVE, XCRS, SREGS, MSRS, LAPIC, DEBUGREGS, EVENTS, CPUID };

static struct config config;
static int vm, vcpu;
static char *ram, *state;
static const char *part[CPUID + 1][3]; // sections of the state by tag; there are three chips
static uint32_t length[CPUID + 1];
static uint32_t gate; // 1 once the vCPU may run

static void filter(unsigned flags, unsigned from, unsigned n)
{
	struct sock_fprog p = {(unsigned short)n, config.filters + from};
	MUST("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &p));
}

// enter is jailer.Enter.
static void enter(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[2];
	MUST("dumpable", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
	prctl(PR_SET_MDWE, 1, 0, 0, 0);
	MUST("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	MUST("capget", syscall(SYS_capget, &head, sets));
	if (syscall(SYS_faccessat, AT_FDCWD, "/proc", F_OK) == 0) _exit(1);
}

static void create(void)
{
	static const int wanted[] = {KVM_CAP_USER_MEMORY, KVM_CAP_IRQCHIP, KVM_CAP_EXT_CPUID, KVM_CAP_IRQFD, KVM_CAP_IOEVENTFD,
				     KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_READONLY_MEM};
	MUST("api version", ioctl(FD_KVM, KVM_GET_API_VERSION, 0));
	for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) MUST("capability", ioctl(FD_KVM, KVM_CHECK_EXTENSION, wanted[i]));
	MUST("run page", ioctl(FD_KVM, KVM_GET_VCPU_MMAP_SIZE, 0));
	vm = (int)MUST("vm", ioctl(FD_KVM, KVM_CREATE_VM, 0));
	fcntl(vm, F_SETFD, FD_CLOEXEC);
	ioctl(FD_KVM, KVM_CHECK_EXTENSION, 200); // SREGS2
	ioctl(FD_KVM, KVM_CHECK_EXTENSION, KVM_CAP_XCRS);
}

static void receive(void)
{
	MUST("configuration", read(FD_CONFIG, &config, offsetof(struct config, leaves)));
	MUST("configuration", read(FD_CONFIG, (char *)&config + offsetof(struct config, leaves), sizeof config - offsetof(struct config, leaves)));
	fcntl(FD_CONTROL, F_SETFL, O_RDWR | O_NONBLOCK);
	for (int fd = FD_STATE; fd < FD_END; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
	close(FD_CONFIG);
}

// log_table is kvm.LogSwitch: the slot with and without a dirty log, where it cannot be changed.
static void log_table(struct kvm_userspace_memory_region slot)
{
	struct kvm_userspace_memory_region *table =
		mmap((void *)LOG_TABLE, 4 * sizeof slot, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	MUST("log table", table == MAP_FAILED ? -1 : 0);
	for (int i = 0; i < 4; i++) {
		table[i] = slot;
		table[i].flags = i % 2 ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	}
	MUST("log table", mprotect(table, 4 * sizeof slot, PROT_READ));
}

static void make_vm(void)
{
	char *whole = mmap(NULL, config.memory + 2 * GUARD + BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ram = (char *)(((uintptr_t)whole + GUARD + BLOCK - 1) & ~(uintptr_t)(BLOCK - 1));
	MUST("ram", mprotect(ram, config.memory, PROT_READ | PROT_WRITE));
	madvise(ram, config.memory, MADV_HUGEPAGE);
	struct kvm_userspace_memory_region slot = {0, 0, 0, config.memory, (uintptr_t)ram};
	MUST("slot", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
	log_table(slot);
	MUST("tss", ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000));
	uint64_t identity = 0xfffc0000;
	MUST("identity map", ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity));
	MUST("irqchip", ioctl(vm, KVM_CREATE_IRQCHIP, 0));
	for (unsigned id = KVM_IRQCHIP_PIC_MASTER; id <= KVM_IRQCHIP_PIC_SLAVE; id++) {
		struct kvm_irqchip chip = {.chip_id = id};
		chip.chip.pic.imr = 0xff;
		MUST("pic", ioctl(vm, KVM_SET_IRQCHIP, &chip));
	}
	ioctl(FD_KVM, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER);
	vcpu = (int)MUST("vcpu", ioctl(vm, KVM_CREATE_VCPU, 0));
	fcntl(vcpu, F_SETFD, FD_CLOEXEC);
	mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	ioctl(FD_KVM, KVM_CHECK_EXTENSION, KVM_CAP_GET_TSC_KHZ);
	ioctl(vcpu, KVM_GET_TSC_KHZ, 0);
	MUST("cpuid", ioctl(vcpu, KVM_SET_CPUID2, &config.processor));
	close(FD_KVM);
}

static void lines(void)
{
	int irq = (int)MUST("eventfd", eventfd(0, EFD_CLOEXEC)), kick[3];
	for (int q = 0; q < 3; q++) kick[q] = (int)MUST("eventfd", eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	for (unsigned q = 0; q < 3; q++) {
		struct kvm_ioeventfd io = {q, DEVICE + KICK, 4, kick[q], KVM_IOEVENTFD_FLAG_DATAMATCH, {0}};
		MUST("ioeventfd", ioctl(vm, KVM_IOEVENTFD, &io));
	}
	struct kvm_irqfd in = {.fd = (uint32_t)irq, .gsi = GSI};
	MUST("irqfd", ioctl(vm, KVM_IRQFD, &in));
}

// read_state finds the sections of the state file (vmm/snapshot) and maps what the memory file has.
static void read_state(void)
{
	struct stat st;
	MUST("memory", syscall(SYS_fstat, FD_MEMORY, &st));
	MUST("state", syscall(SYS_fstat, FD_STATE, &st));
	state = malloc(MAX_STATE);
	long size = MUST("state", pread(FD_STATE, state, (size_t)(st.st_size < MAX_STATE ? st.st_size : MAX_STATE), 0));
	int chips = 0;
	for (long at = 12; at + 8 <= size;) {
		uint32_t t, n;
		memcpy(&t, state + at, 4);
		memcpy(&n, state + at + 4, 4);
		if (t <= CPUID) {
			part[t][t == CHIP ? chips++ % 3 : 0] = state + at + 8;
			length[t] = n;
		}
		at += 8 + n;
	}
	const unsigned char *blocks = (const unsigned char *)part[BLOCKS][0];
	for (uint64_t b = 0; b < config.memory / BLOCK; b++) {
		uint64_t e = b;
		while (e < config.memory / BLOCK && blocks[e / 8] & 1 << e % 8) e++;
		if (e > b) MUST("map memory", mmap(ram + b * BLOCK, (e - b) * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, FD_MEMORY, (off_t)(b * BLOCK)) == MAP_FAILED ? -1 : 0);
		b = e;
	}
	close(FD_STATE);
	int broker = fcntl(FD_BROKER, F_DUPFD_CLOEXEC, 3);
	fcntl(broker, F_SETFL, O_RDWR | O_NONBLOCK);
	close(FD_BROKER);
}

static void restore(void)
{
	static struct { struct kvm_msrs head; struct kvm_msr_entry entries[256]; } msrs;
	struct kvm_clock_data clock = {0};
	for (int i = 0; i < 3; i++) MUST("irqchip", ioctl(vm, KVM_SET_IRQCHIP, part[CHIP][i]));
	memcpy(&clock.clock, part[CLOCK][0], 8);
	MUST("clock", ioctl(vm, KVM_SET_CLOCK, &clock));
	MUST("regs", ioctl(vcpu, KVM_SET_REGS, part[REGS][0]));
	MUST("xsave", ioctl(vcpu, KVM_SET_XSAVE, part[XSAVE][0]));
	MUST("xcrs", ioctl(vcpu, KVM_SET_XCRS, part[XCRS][0]));
	MUST("sregs", ioctl(vcpu, KVM_SET_SREGS2, part[SREGS][0]));
	MUST("lapic", ioctl(vcpu, KVM_SET_LAPIC, part[LAPIC][0]));
	for (uint32_t i = 0; i < length[MSRS] / 12 && i < 256; i++) {
		memcpy(&msrs.entries[i].index, part[MSRS][0] + 12 * i, 4);
		memcpy(&msrs.entries[i].data, part[MSRS][0] + 12 * i + 4, 8);
		msrs.head.nmsrs = i + 1;
	}
	MUST("msrs", ioctl(vcpu, KVM_SET_MSRS, &msrs));
	MUST("debug registers", ioctl(vcpu, KVM_SET_DEBUGREGS, part[DEBUGREGS][0]));
	MUST("events", ioctl(vcpu, KVM_SET_VCPU_EVENTS, part[EVENTS][0]));
	MUST("mp state", ioctl(vcpu, KVM_SET_MP_STATE, part[MP][0]));
}

static void park(uint32_t *word, uint32_t value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0); }

// run is the vCPU's thread. The process is killed when it has reported.
static void run(void)
{
	struct report r = {0};
	while (!__atomic_load_n(&gate, __ATOMIC_ACQUIRE)) park(&gate, 0);
	filter(0, config.running, config.vcpu);
	MUST("run", ioctl(vcpu, KVM_RUN, 0));
	r.at = now();
	MUST("report", write(FD_CONTROL, &r, sizeof r));
	for (;;) park(&gate, 1);
}

// thread starts run as the Go runtime starts threads: the filter lets no other clone through, pthread_create's included. It
// shares the main thread's errno, which nobody looks at.
static void thread(void)
{
	static char stack[64 << 10] __attribute__((aligned(16)));
	long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, tid;
	register void (*body)(void) __asm__("r13") = run;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "call *%%r13\n\t"
			 "ud2\n"
			 "1:"
			 : "=a"(tid)
			 : "a"(SYS_clone), "D"(flags), "S"(stack + sizeof stack), "r"(body)
			 : "rcx", "r11", "memory");
	MUST("thread", tid);
}

int main(void)
{
	enter();
	create();
	receive();
	make_vm();
	lines();
	thread();
	read_state();
	restore();
	filter(SECCOMP_FILTER_FLAG_TSYNC, 0, config.running);
	__atomic_store_n(&gate, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &gate, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	struct report r = {now(), 0, 0};
	MUST("report", write(FD_CONTROL, &r, sizeof r));
	for (;;) park(&gate, 1);
}

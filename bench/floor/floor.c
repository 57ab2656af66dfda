// floor is what a fresh start of a jailed VMM costs without Go, for the wake benchmark: it makes the calls that Spore's
// supervisor and its jail make (sandbox/jail.go, jailer/plan.go), and then those of spore-vmm (vmm.c).
//
//	floor VMM STATE MEMORY BUILDING RUNNING VCPU
//
// STATE and MEMORY are a snapshot of a bare-metal guest, the last three are the compiled filters of vmm/policy. For every line
// on standard input it wakes the guest once and prints, in ns since the request: process there, about to run, first exit, all
// returned.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "floor.h"

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

enum { EXEC_FILE = 1000, FAILURE_FILE = 1001, ABOVE = 1002, UID = 2000000007, STACK = 64 << 10 };

static const char *vmm_path, *state_path, *memory_path;
static struct sock_filter filters[3][MAX_FILTER]; // building, running, vcpu
static unsigned lengths[3];
static char *const vmm_argv[] = {"spore-floor", NULL};
static int landlock_abi, last_cap;

struct child {
	int sources[FD_END]; // by the descriptor that each becomes
	int sync, sync_in, failure, exe;
};

static void fail(int to, const char *what)
{
	char line[128];
	int n = snprintf(line, sizeof line, "%s: %s", what, strerror(errno));
	(void)!write(to, line, (size_t)n);
	_exit(253);
}

#define DO(what, call)                                                                             \
	do                                                                                         \
		if ((call) < 0) fail(report, what);                                                \
	while (0)

static void limit(int report, int what, rlim_t value)
{
	struct rlimit l = {value, value};
	DO("prlimit", prlimit(0, (enum __rlimit_resource)what, &l, NULL));
}

static void empty_root(int report)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	DO("private mounts", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	DO("mount root", mount("tmpfs", "/proc", "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555"));
	DO("enter root", chdir("/proc"));
	DO("pivot_root", syscall(SYS_pivot_root, ".", "."));
	DO("detach", umount2(".", MNT_DETACH));
	DO("enter root", chdir("/"));
	DO("read-only", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | flags, NULL));
}

static void landlock(int report, int ruleset)
{
	if (landlock_abi < 1) return;
	struct { uint64_t fs, net, scope; } attr = {(1u << 13) - 1, 0, 0};
	if (landlock_abi >= 2) attr.fs |= 1u << 13;
	if (landlock_abi >= 3) attr.fs |= 1u << 14;
	if (landlock_abi >= 4) attr.net = 3;
	if (landlock_abi >= 5) attr.fs |= 1u << 15;
	if (landlock_abi >= 6) attr.scope = 3;
	size_t size = landlock_abi >= 6 ? 24 : landlock_abi >= 4 ? 16 : 8;
	struct landlock_path_beneath_attr rule = {LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE, EXEC_FILE};
	DO("landlock", syscall(SYS_landlock_create_ruleset, &attr, size, 0));
	DO("landlock", syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0));
	DO("landlock", syscall(SYS_landlock_restrict_self, ruleset, 0));
	close(ruleset);
}

static void drop_capabilities(int report)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {0};
	DO("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
	for (int c = 0; c <= last_cap; c++) DO("bounding", prctl(PR_CAPBSET_DROP, c, 0, 0, 0));
	DO("securebits", prctl(PR_SET_SECUREBITS, 0xcf, 0, 0, 0));
	DO("capset", syscall(SYS_capset, &head, none));
}

// jail is the child: from the clone to the exec, in the order of jailer/plan.go.
static void jail(struct child *c)
{
	int report = c->failure;
	char b;
	close(c->sync_in);
	if (read(c->sync, &b, 1) != 1) _exit(253);
	limit(report, RLIMIT_CORE, 0);
	limit(report, RLIMIT_NOFILE, 1024);
	limit(report, RLIMIT_MSGQUEUE, 0);
	limit(report, RLIMIT_MEMLOCK, 0);
	limit(report, RLIMIT_NPROC, 512);
	limit(report, RLIMIT_FSIZE, 1 << 30);
	DO("setsid", setsid());
	DO("setgroups", syscall(SYS_setgroups, 0, NULL));
	DO("setresgid", syscall(SYS_setresgid, 0, 0, 0));
	DO("setresuid", syscall(SYS_setresuid, 0, 0, 0));
	for (int to = 0; to < FD_END; to++) DO("dup3", dup3(c->sources[to], to, 0));
	DO("dup3", dup3(c->exe, EXEC_FILE, O_CLOEXEC));
	DO("dup3", dup3(c->failure, FAILURE_FILE, O_CLOEXEC));
	report = FAILURE_FILE;
	DO("close_range", syscall(SYS_close_range, FD_END, EXEC_FILE - 1, 0));
	DO("close_range", syscall(SYS_close_range, FAILURE_FILE + 1, ~0u, 0));
	DO("time namespace", unshare(CLONE_NEWTIME));
	empty_root(report);
	landlock(report, FD_END);
	drop_capabilities(report);
	uint64_t no_signals = 0;
	DO("signal mask", syscall(SYS_rt_sigprocmask, SIG_SETMASK, &no_signals, NULL, 8));
	DO("no_new_privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	struct sock_fprog p = {(unsigned short)lengths[0], filters[0]};
	DO("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p));
	char *env[] = {NULL};
	syscall(SYS_execveat, EXEC_FILE, "", vmm_argv, env, AT_EMPTY_PATH);
	fail(report, "execveat");
}

// start clones the child, on a stack of its own in our memory as jailer does it.
static long start(struct clone_args *args, struct child *c)
{
	register struct clone_args *a __asm__("rdi") = args;
	register size_t size __asm__("rsi") = sizeof *args;
	register struct child *arg __asm__("r12") = c;
	register void (*run)(struct child *) __asm__("r13") = jail;
	long pid;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "mov %%r12, %%rdi\n\t"
			 "call *%%r13\n\t"
			 "ud2\n"
			 "1:"
			 : "=a"(pid)
			 : "a"(SYS_clone3), "r"(a), "r"(size), "r"(arg), "r"(run)
			 : "rcx", "r11", "memory");
	return pid;
}

static void map_id(long pid, const char *file)
{
	char path[64], text[32];
	snprintf(path, sizeof path, "/proc/%ld/%s", pid, file);
	int n = snprintf(text, sizeof text, "0 %d 1\n", UID);
	int fd = (int)MUST("open id map", open(path, O_WRONLY | O_CLOEXEC));
	MUST("write id map", write(fd, text, (size_t)n));
	close(fd);
}

static int raised(int fd)
{
	int copy = (int)MUST("copy descriptor", fcntl(fd, F_DUPFD_CLOEXEC, ABOVE));
	close(fd);
	return copy;
}

static int opened(const char *path, int flags) { return raised((int)MUST("open", open(path, flags | O_CLOEXEC))); }

static void pair(int kind, int *ours, int *theirs)
{
	int p[2];
	MUST("socketpair", socketpair(AF_UNIX, kind | SOCK_CLOEXEC, 0, p));
	*ours = p[0];
	*theirs = raised(p[1]);
}

static struct config told;

// ask asks KVM once what it can virtualise: Spore keeps the answer in a file.
static void ask(void)
{
	int device = (int)MUST("open", open("/dev/kvm", O_RDWR | O_CLOEXEC));
	told.processor.nent = 256;
	MUST("supported cpuid", ioctl(device, KVM_GET_SUPPORTED_CPUID, &told.processor));
	close(device);
}

static void tell(int config)
{
	struct stat st;
	MUST("stat memory", stat(memory_path, &st));
	told.memory = (uint64_t)st.st_size, told.running = lengths[1], told.vcpu = lengths[2];
	memcpy(told.filters, filters[1], lengths[1] * sizeof *told.filters);
	memcpy(told.filters + lengths[1], filters[2], lengths[2] * sizeof *told.filters);
	MUST("write configuration", write(config, &told, offsetof(struct config, filters) + (lengths[1] + lengths[2]) * sizeof *told.filters));
}

static void hear(int control, struct report *r)
{
	for (size_t have = 0; have < sizeof *r;) {
		ssize_t n = read(control, (char *)r + have, sizeof *r - have);
		if (n <= 0) {
			fprintf(stderr, "floor: the VMM has gone\n");
			exit(1);
		}
		have += (size_t)n;
	}
}

static void wake(char *stack)
{
	uint64_t began = now();
	struct child c;
	int config, control, broker, failure[2], sync[2], pidfd = -1;
	int null = opened("/dev/null", O_RDWR);
	c.exe = opened(vmm_path, O_RDONLY);
	c.sources[0] = c.sources[1] = null;
	c.sources[2] = (int)MUST("copy descriptor", fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, ABOVE));
	pair(SOCK_STREAM, &config, &c.sources[FD_CONFIG]);
	c.sources[FD_KVM] = opened("/dev/kvm", O_RDWR);
	c.sources[FD_STATE] = opened(state_path, O_RDONLY);
	c.sources[FD_MEMORY] = opened(memory_path, O_RDONLY);
	pair(SOCK_STREAM, &control, &c.sources[FD_CONTROL]);
	pair(SOCK_SEQPACKET, &broker, &c.sources[FD_BROKER]);
	tell(config);
	MUST("pipe", pipe2(failure, O_CLOEXEC));
	MUST("pipe", pipe2(sync, O_CLOEXEC));
	c.failure = raised(failure[1]);
	c.sync = sync[0];
	c.sync_in = sync[1];
	struct clone_args args = {
		.flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP |
			 CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
		.stack = (uint64_t)(uintptr_t)stack,
		.stack_size = STACK,
	};
	long pid = MUST("clone3", start(&args, &c));
	close(c.failure);
	map_id(pid, "gid_map");
	map_id(pid, "uid_map");
	MUST("release", write(sync[1], "", 1));
	char why[128];
	ssize_t n = read(failure[0], why, sizeof why);
	if (n != 0) {
		fprintf(stderr, "floor: %.*s\n", (int)(n < 0 ? 0 : n), why);
		exit(1);
	}
	uint64_t there = now();
	for (int i = 0; i < FD_END; i++)
		if (i != 1) close(c.sources[i]);
	struct report about, first;
	hear(control, &about);
	hear(control, &first);
	MUST("kill", kill((pid_t)pid, SIGKILL));
	MUST("wait", waitpid((pid_t)pid, NULL, 0));
	uint64_t end = now();
	for (int *fd = (int[]){c.exe, config, control, broker, failure[0], sync[0], sync[1], pidfd, -1}; *fd >= 0; fd++) close(*fd);
	printf("%lu %lu %lu %lu\n", there - began, about.at - began, first.at - began, end - began);
	fflush(stdout);
}

// libc puts what the C library's start needs, and a Go program's does not, before the filter: jumps are relative.
static unsigned libc(struct sock_filter *f)
{
	static const uint32_t calls[] = {SYS_set_tid_address, SYS_set_robust_list, SYS_rseq, SYS_brk, SYS_readlinkat, SYS_readlink};
	unsigned n = 0;
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0); // struct seccomp_data.nr
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
		f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	return n;
}

static void load(int i, const char *path)
{
	unsigned before = i == 0 ? libc(filters[i]) : 0;
	int fd = (int)MUST("open filter", open(path, O_RDONLY | O_CLOEXEC));
	size_t room = sizeof filters[i] - before * sizeof filters[i][0];
	lengths[i] = before + (unsigned)MUST("read filter", read(fd, filters[i] + before, room)) / sizeof filters[i][0];
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc != 7) {
		fprintf(stderr, "floor VMM STATE MEMORY BUILDING RUNNING VCPU\n");
		return 2;
	}
	vmm_path = argv[1], state_path = argv[2], memory_path = argv[3];
	for (int i = 0; i < 3; i++) load(i, argv[4 + i]);
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
	landlock_abi = abi < 0 ? 0 : (int)abi;
	FILE *f = fopen("/proc/sys/kernel/cap_last_cap", "r");
	if (!f || fscanf(f, "%d", &last_cap) != 1) last_cap = 40;
	if (f) fclose(f);
	ask();
	char *stack = aligned_alloc(4096, STACK);
	for (char line[16]; fgets(line, sizeof line, stdin);) wake(stack);
	return 0;
}

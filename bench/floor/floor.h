// What both halves of the floor share: see floor.c.
#pragma once
#include <linux/filter.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FD_CONFIG = 3, FD_KVM, FD_STATE, FD_MEMORY, FD_CONTROL, FD_BROKER, FD_END }; // in the jail
enum { MAX_FILTER = 4096 };

// config is what the jailed half is told, on FD_CONFIG.
struct config {
	uint64_t memory;
	uint32_t running, vcpu;	      // instructions of the filters: first running's, then vcpu's
	struct kvm_cpuid2 processor; // KVM_GET_SUPPORTED_CPUID
	struct kvm_cpuid_entry2 leaves[256];
	struct sock_filter filters[2 * MAX_FILTER]; // only as much of it as there is is sent
};

// report is what the jailed half says on FD_CONTROL: when its vCPU was about to run, then when that came back.
struct report {
	uint64_t at;
	uint32_t reason, port;
};

static inline uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#define MUST(what, call)                                                                           \
	({                                                                                         \
		long r_ = (long)(call);                                                            \
		if (r_ < 0) {                                                                      \
			perror("floor: " what);                                                    \
			_exit(1);                                                                  \
		}                                                                                  \
		r_;                                                                                \
	})

#!/usr/bin/env bash
# Builds the guest of this directory into a file: an ELF program that is loaded at 1 MiB and entered in 64-bit mode.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")"
gcc -ffreestanding -nostdlib -static -fno-pic -no-pie -mno-red-zone -mgeneral-regs-only -O2 -fno-stack-protector -fno-strict-aliasing \
    -fno-asynchronous-unwind-tables -Wall -Wextra -Werror -Wl,--build-id=none,-Ttext-segment=0x100000,-z,noexecstack -o "$out" start.S ./*.c

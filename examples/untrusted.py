#!/usr/bin/env python3
"""A program nobody has vetted: it looks around, tries to do harm, and reports."""
import os
import platform
import socket

print("hello from", platform.node(), "kernel", platform.release(), "as uid", os.getuid())
print("processes in sight:", sum(1 for p in os.listdir("/proc") if p.isdigit()))
for what, attempt in {
    "overwrite /bin/sh": lambda: open("/bin/sh", "ab"),
    "read the shadow file": lambda: open("/etc/shadow").read(),
    "reach a network": lambda: socket.create_connection(("192.0.2.1", 80), timeout=2),
}.items():
    try:
        attempt()
        print(what + ": it worked!")
    except OSError as e:
        print(what + ":", e.strerror)
print("the answer is", sum(range(9)) + 6)

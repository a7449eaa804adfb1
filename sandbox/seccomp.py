"""The system calls a sandboxed program is denied, as a program for the kernel (seccomp(2), classic BPF).

Namespaces take away what there is to reach; this takes away ways to reach the kernel itself, and the socket families
that no namespace contains: AF_VSOCK goes from a virtual machine straight to its host. AF_UNIX stays, because
DataLoader workers talk over it. And ways to hold memory that is in no process and in no file, where a watchdog would
look for it.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import NamedTuple


class _Machine(NamedTuple):
    """audit: AUDIT_ARCH_*, linux/audit.h. calls: system call numbers, asm/unistd.h."""

    audit: int
    calls: dict[str, int]


# Calls of both machines with one number (asm-generic, since 2018).
_COMMON = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
           "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435,
           "pidfd_getfd": 438, "mount_setattr": 442, "memfd_secret": 447}  # fmt: skip
MACHINES = {
    "x86_64": _Machine(0xC000003E, _COMMON | {
        "shmget": 29, "socket": 41, "clone": 56, "msgget": 68, "ptrace": 101, "syslog": 103, "personality": 135,
        "pivot_root": 155, "chroot": 161, "acct": 163, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168,
        "reboot": 169, "init_module": 175, "delete_module": 176, "quotactl": 179, "kexec_load": 246, "add_key": 248,
        "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304,
        "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
        "memfd_create": 319, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323}),
    "aarch64": _Machine(0xC00000B7, _COMMON | {
        "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "quotactl": 60, "acct": 89, "personality": 92,
        "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106, "syslog": 116, "ptrace": 117,
        "reboot": 142, "msgget": 186, "shmget": 194, "socket": 198, "add_key": 217, "request_key": 218, "keyctl": 219,
        "clone": 220, "swapon": 224, "swapoff": 225, "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "memfd_create": 279,
        "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294}),
}  # fmt: skip

AF_UNIX = 1
CLONE_NEW = 0x7E020000  # CLONE_NEWNS … CLONE_NEWNET, linux/sched.h
X32 = 0x40000000  # the second set of numbers that an x86_64 kernel may understand

# Said to be missing: without clone3 the C library uses clone, whose flags can be looked at; without the others programs
# do as they do on kernels that never had them.
ABSENT = ("clone3", "memfd_create", "memfd_secret", "shmget", "msgget")

# struct seccomp_data: nr at 0, arch at 4, the low halves of the arguments from 16 on, 8 bytes apart
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def program(machine: str = platform.machine()) -> bytes:
    """The filter for `bwrap --seccomp`. Raise KeyError for a machine whose numbers are not known here."""
    audit, calls = MACHINES[machine]
    return b"".join(
        (
            _op(_LOAD, _ARCH),
            _op(_EQUAL, audit, 1, 0),
            _op(_RETURN, _KILL),
            _op(_LOAD, _NR),
            _op(_AT_LEAST, X32, 0, 1),
            _op(_RETURN, _KILL),
            *(_refuse(calls[name], errno.ENOSYS) for name in ABSENT),
            _refuse_unless(calls["socket"], _EQUAL, AF_UNIX, allowed=True, error=errno.EAFNOSUPPORT),
            _refuse_unless(calls["clone"], _ANY_BIT, CLONE_NEW, allowed=False, error=errno.EPERM),
            *(
                _refuse(number, errno.EPERM)
                for name, number in calls.items()
                if name not in (*ABSENT, "socket", "clone")
            ),
            _op(_RETURN, _ALLOW),
        )
    )


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter, linux/filter.h; the jumps count instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(call: int, error: int) -> bytes:
    return _op(_EQUAL, call, 0, 1) + _op(_RETURN, _ERROR | error)


def _refuse_unless(call: int, test: int, value: int, *, allowed: bool, error: int) -> bytes:
    """Look at the first argument of `call`: `test` against `value` says whether it is `allowed`."""
    return b"".join(
        (
            _op(_EQUAL, call, 0, 4),
            _op(_LOAD, _FIRST_ARGUMENT),
            _op(test, value, int(allowed), int(not allowed)),
            _op(_RETURN, _ERROR | error),
            _op(_RETURN, _ALLOW),
        )
    )

"""What a signal's code means, in words.

The numbers are the kernel's own (include/uapi/asm-generic/siginfo.h, Linux 6.18), not this machine's; the words are those of
psiginfo(3) where it has any.
"""

from typing import Final

SIGILL: Final = 4
SIGTRAP: Final = 5
SIGBUS: Final = 7
SIGFPE: Final = 8
SIGSEGV: Final = 11

_FAULTS: Final = {
    SIGILL: {
        1: "illegal opcode", 2: "illegal operand", 3: "illegal addressing mode", 4: "illegal trap", 5: "privileged opcode",
        6: "privileged register", 7: "coprocessor error", 8: "internal stack error", 9: "unimplemented instruction address",
    },
    SIGTRAP: {
        1: "process breakpoint", 2: "process trace trap", 3: "process taken branch trap", 4: "hardware breakpoint or watchpoint",
        5: "undiagnosed trap", 6: "perf event",
    },
    SIGBUS: {
        1: "invalid address alignment", 2: "nonexistent physical address", 3: "object-specific hardware error",
        4: "hardware memory error, consumed", 5: "hardware memory error, not consumed",
    },
    SIGFPE: {
        1: "integer divide by zero", 2: "integer overflow", 3: "floating-point divide by zero", 4: "floating-point overflow",
        5: "floating-point underflow", 6: "floating-point inexact result", 7: "invalid floating-point operation",
        8: "subscript out of range", 14: "undiagnosed floating-point exception", 15: "trap on condition",
    },
    SIGSEGV: {
        1: "address not mapped", 2: "invalid permissions for mapped object", 3: "failed address bound checks",
        4: "access denied by memory protection keys", 5: "ADI not enabled", 6: "disrupting MCD error", 7: "precise MCD exception",
        8: "asynchronous memory tag fault", 9: "synchronous memory tag fault", 10: "control protection fault",
    },
}  # fmt: skip
_SENDERS: Final = {
    0: "sent by kill", -1: "sent by sigqueue", -2: "sent by a timer", -3: "sent by a message queue",
    -4: "sent by asynchronous I/O", -5: "sent by queued SIGIO", -6: "sent by tgkill, as abort and raise do",
    0x80: "sent by the kernel",
}  # fmt: skip
"""SI_USER, SI_QUEUE, SI_TIMER, SI_MESGQ, SI_ASYNCIO, SI_SIGIO, SI_TKILL, SI_KERNEL: of any signal."""
_KERNEL: Final = 0x80


def describe_code(signal: int, code: int) -> str:
    """Return a signal code (si_code) in words; an unknown one by its number."""
    return _SENDERS.get(code) or _FAULTS.get(signal, {}).get(code) or f"code {code}"


def has_address(signal: int, code: int) -> bool:
    """Return whether the siginfo of this signal and code carries the address of a fault (sigaction(2), si_addr).

    Nothing that a process sent does. SI_KERNEL stands for a fault whose address the processor does not tell, such as one that
    is not canonical on x86-64: the field is zero then, and would mislead.
    """
    return signal in _FAULTS and 0 < code != _KERNEL

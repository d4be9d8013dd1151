/* Makes a process of a chosen pid, which calls itself "impostor" and lives until our input ends. */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    pid_t wanted = argc > 1 ? atoi(argv[1]) : 0;
    struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1};
    long made = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (made < 0)
        return 77;
    if (made == 0) {
        prctl(PR_SET_NAME, "impostor");
        for (;;)
            pause();
    }
    char byte;
    puts("made");
    fflush(stdout);
    if (read(0, &byte, 1) < 0)
        return 1;
    kill(made, SIGKILL);
    return waitpid(made, NULL, 0) == made ? 0 : 1;
}

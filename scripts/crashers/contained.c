/* Crashes as the first process of a container: namespaces of its own for users, processes, mounts and the host's name, which it
   sets to its first argument. Prints the pid that the machine knows it by. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS) != 0)
        return 77;
    if (argc > 1 && sethostname(argv[1], strlen(argv[1])) != 0)
        return 77;
    pid_t child = fork();
    if (child == 0)
        return *(volatile int *)8;
    printf("%d\n", child);
    fflush(stdout);
    return waitpid(child, NULL, 0) == child ? 0 : 1;
}

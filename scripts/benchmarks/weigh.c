/* Stands between the kernel and a handler, as the handler's parent, and tells what it took: `weigh PROGRAM ARGUMENT...` leaves
   PROGRAM.took, one line: wait status, user and system microseconds, largest resident KiB, elapsed microseconds. The times are those of
   the program and of all that it has waited for. A process begins its largest resident size with that of its parent at the fork, so
   the parent has to be as small as this one. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long microseconds(struct timeval time) { return time.tv_sec * 1000000LL + time.tv_usec; }

int main(int argc, char **argv)
{
    char took[4096], draft[4200], line[200];
    struct timespec begun, ended;
    struct rusage usage;
    int status, length;
    if (argc < 2 || strlen(argv[1]) > 4000)
        return 2;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    pid_t program = fork();
    if (program == 0) {
        execv(argv[1], argv + 1);
        _exit(127);
    }
    /* The crash is over when its pipe has no reader left: the program alone decides when that is. */
    for (int fd = 0; fd < 64; fd++)
        close(fd);
    if (program < 0 || wait4(program, &status, 0, &usage) != program)
        return 1;
    clock_gettime(CLOCK_MONOTONIC, &ended);
    snprintf(took, sizeof took, "%s.took", argv[1]);
    snprintf(draft, sizeof draft, "%s.new", took);
    length = snprintf(line, sizeof line, "%d %lld %lld %ld %lld\n", status, microseconds(usage.ru_utime), microseconds(usage.ru_stime),
                      usage.ru_maxrss, (ended.tv_sec - begun.tv_sec) * 1000000LL + (ended.tv_nsec - begun.tv_nsec) / 1000);
    int file = open(draft, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, line, length) != length || rename(draft, took) != 0)
        return 1;
    return 0;
}

/* Calls itself what its first argument says, waits for one byte or the end of its input, and crashes. */
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char byte;
    if (argc > 1)
        prctl(PR_SET_NAME, argv[1]);
    if (read(0, &byte, 1) < 0)
        return 1;
    return *(volatile int *)8;
}

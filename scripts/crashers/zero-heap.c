/* MIB mebibytes of zeroes that were written, so that they are in the core, then an abort. */
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    size_t bytes = (argc > 1 ? strtoul(argv[1], 0, 10) : 64) << 20;
    volatile char *heap = malloc(bytes);
    for (size_t at = 0; heap && at < bytes; at += 4096)
        heap[at] = 0;
    abort();
}

/* Reads a mapped page behind the end of its file: SIGBUS, nonexistent physical address. */
#include <stdio.h>
#include <sys/mman.h>

int main(void)
{
    FILE *empty = tmpfile();
    volatile char *page = empty ? mmap(0, 4096, PROT_READ, MAP_SHARED, fileno(empty), 0) : MAP_FAILED;
    return page == MAP_FAILED ? 1 : page[16];
}

/* A managed heap in small: MIB mebibytes of little objects that point to each other, then an abort. A byte on standard output says
   that the heap is built, so that whoever measures knows when the crash begins. */
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

struct object { struct object *next; uint32_t type, reference_count; uint64_t value; char name[8]; };

int main(int argc, char **argv)
{
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 64;
    size_t count = (mib << 20) / sizeof(struct object);
    struct object *heap = malloc(count * sizeof *heap);
    uint64_t state = 88172645463325252u;
    if (!heap)
        return 1;
    for (size_t at = 0; at < count; at++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        heap[at].next = &heap[state % count];
        heap[at].type = state >> 60;
        heap[at].reference_count = 1 + (state >> 56 & 3);
        heap[at].value = at & 0xffff;
        heap[at].name[0] = 'a' + at % 26;
    }
    if (write(1, ".", 1) != 1)
        return 1;
    abort();
}

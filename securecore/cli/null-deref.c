/* Crashes in a known way: a lookup through a null pointer, three calls deep, beside some memory that is worth looking at. */
#include <stdlib.h>
#include <string.h>

struct table { int used; const char *names[8]; };

static int lookup(const struct table *table, const char *key)
{
    return strcmp(table->names[0], key);
}

static int serve(struct table *table, const char *request)
{
    return lookup(table, request);
}

int main(int argc, char **argv)
{
    char *heap = malloc(12 << 20);
    for (size_t at = 0; at < 12u << 20; at += 16)
        memcpy(heap + at, &at, sizeof at);
    return serve(NULL, argc > 1 ? argv[1] : "index.html") + heap[argc];
}

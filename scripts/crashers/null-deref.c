/* Follows a null pointer, three calls deep: SIGSEGV, address not mapped, at a field's offset: 0x10 where a pointer has 8 bytes. */
struct node { const char *key; struct node *next; long value; };

__attribute__((noinline)) static long value_of(struct node *node) { return node->next->value + 1; }

__attribute__((noinline)) static long walk(struct node *node) { return value_of(node) + 1; }

int main(int argc, char **argv)
{
    struct node last = {argv[0], 0, argc};
    return (int)walk(&last);
}

/* A process of MIB mebibytes of anonymous memory, then an abort: `filled MIB CORPUS [FILLED_MIB]`. The first FILLED_MIB of them (all
   of them when it is not given) hold what the file CORPUS holds, from its beginning and again when it is at its end; the others were
   never touched. A byte on standard output says that all is ready, so that whoever measures knows when the crash begins. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    size_t size = strtoul(argv[1], NULL, 10) << 20, filled = argc > 3 ? strtoul(argv[3], NULL, 10) << 20 : size;
    int corpus = open(argv[2], O_RDONLY);
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (corpus < 0 || memory == MAP_FAILED || filled > size)
        return 1;
    for (size_t at = 0; at < filled;) {
        ssize_t got = read(corpus, memory + at, filled - at);
        if (got < 0 || (got == 0 && (at == 0 || lseek(corpus, 0, SEEK_SET) != 0)))
            return 1;
        at += got;
    }
    if (write(1, ".", 1) != 1)
        return 1;
    abort();
}

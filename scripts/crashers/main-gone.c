/* The main thread has ended and another one crashes, once the input ends: /proc/PID/exe leads nowhere by then. */
#include <pthread.h>
#include <unistd.h>

static void *run(void *unused)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    *(volatile int *)0x10 = 1;
    return unused;
}

int main(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, run, 0);
    pthread_exit(0);
}

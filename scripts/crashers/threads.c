/* Eight threads wait and one of them crashes: the core's first thread is not the process's first. */
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

enum { THREADS = 8, CRASHING = 5 };

static pthread_barrier_t all_started;

__attribute__((noreturn)) static void *run(void *number)
{
    pthread_barrier_wait(&all_started);
    if ((intptr_t)number == CRASHING)
        *(volatile int *)0x10 = 1;
    for (;;)
        pause();
}

int main(void)
{
    pthread_t thread;
    pthread_barrier_init(&all_started, 0, THREADS);
    for (intptr_t number = 1; number < THREADS; number++)
        pthread_create(&thread, 0, run, (void *)number);
    return run(0) != 0;
}

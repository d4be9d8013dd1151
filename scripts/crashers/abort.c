/* Ends itself, as a failed assertion does: SIGABRT, sent by the process to its own thread. */
#include <stdlib.h>

int main(void) { abort(); }

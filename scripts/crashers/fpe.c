/* Divides by zero: SIGFPE, integer divide by zero, where the processor traps it (x86 does, AArch64 does not). */
int main(int argc, char **argv)
{
    volatile int zero = argv[argc] != 0;
    return argc / zero;
}

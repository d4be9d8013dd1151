/* Executes an instruction that no processor has: SIGILL, illegal operand or opcode. */
int main(void) { __builtin_trap(); }

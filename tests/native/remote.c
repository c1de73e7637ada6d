/* The functions of kernels.c for a program of another processor, under an emulator: calls come in on stdin and answers
 * go out on stdout, so that the tests are the same.
 *
 * A call: name [16], then 16 times int64 value and int64 bytes; where bytes is not negative the argument is a buffer of
 * that many, whose contents follow in order. An answer: int64 result, and all buffers again. Every argument is passed
 * as a word, which is how both 64-bit Arm and RISC-V pass integers and pointers. */
#include "kernels.c"

#include <stdio.h>
#include <stdlib.h>

#define WORDS 16
typedef intptr_t function(intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t,
                          intptr_t, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t);

static const struct {
    const char *name;
    function *run;
} functions[] = {
#define ENTRY(name) {#name, (function *)(void *)name},
    ENTRY(isa) ENTRY(form_count) ENTRY(form_at) ENTRY(panel_bytes) ENTRY(row_bytes) ENTRY(round_rows) ENTRY(gather_row)
    ENTRY(quantise_row) ENTRY(rms_norm) ENTRY(layer_norm) ENTRY(rope) ENTRY(exp_of) ENTRY(sigmoid_of) ENTRY(silu_of)
    ENTRY(tanh_of) ENTRY(erf_of) ENTRY(gelu_of) ENTRY(gelu_tanh_of)
#if defined(WITH_ATTENTION)
    ENTRY(attention)
#else
    ENTRY(linear) ENTRY(linear_prompt)
#endif
};

static void must(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "remote: %s\n", what);
    exit(1);
}

int main(void) {
    char name[16];
    while (fread(name, sizeof name, 1, stdin) == 1) {
        struct { int64_t value, bytes; } argument[WORDS];
        must(fread(argument, sizeof argument, 1, stdin) == 1, "a call ends early");
        intptr_t word[WORDS];
        for (int i = 0; i < WORDS; i++) {
            size_t bytes = (size_t)argument[i].bytes;
            word[i] = (intptr_t)argument[i].value;
            if (argument[i].bytes < 0) continue;
            word[i] = (intptr_t)aligned_alloc(64, AICC_ROUND_UP(bytes + 1, 64));
            must(word[i] && (bytes == 0 || fread((void *)word[i], bytes, 1, stdin) == 1), "a buffer ends early");
        }
        function *run = NULL;
        for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
            if (strncmp(name, functions[i].name, sizeof name) == 0) run = functions[i].run;
        must(run != NULL, "there is no such function");
        int64_t result = run(word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7], word[8], word[9],
                             word[10], word[11], word[12], word[13], word[14], word[15]);
        fwrite(&result, sizeof result, 1, stdout);
        for (int i = 0; i < WORDS; i++) {
            if (argument[i].bytes < 0) continue;
            fwrite((void *)word[i], 1, (size_t)argument[i].bytes, stdout);
            free((void *)word[i]);
        }
        fflush(stdout);
    }
    return 0;
}

/* A chat with a compiled model, in C alone: libmodel, its weights and tokenizer.bin.
 *
 *     chat FOLDER [-n TOKENS] [-t THREADS] [-v] ["a question"]
 *
 * With a question it answers once, taking the likeliest token each time; without, it reads one question a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "aicc_model.h"
#include "tokenizer.h"

static void fail(const char *what, const char *why) {
    fprintf(stderr, "chat: %s: %s\n", what, why);
    exit(1);
}

static void check(int status, const char *what) {
    if (status != AICC_OK) fail(what, aicc_error_text(status));
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The whole of a file in memory. */
static void *contents(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    long bytes = file && fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    void *memory = bytes > 0 ? malloc((size_t)bytes) : NULL;
    if (!memory) fail(path, "cannot be read");
    rewind(file);
    if (fread(memory, 1, (size_t)bytes, file) != (size_t)bytes) fail(path, "cannot be read");
    fclose(file);
    *size = (size_t)bytes;
    return memory;
}

typedef struct chat {
    tokenizer words;
    aicc_model *model;
    float *logits;
    int64_t *ids;
    size_t room;
    int32_t most_tokens, turns, verbose;
    double start;
} chat;

/* Tokens of text after the `count` there are. */
static size_t add(const chat *c, size_t count, const char *text, size_t size, int specials) {
    long more = tokenizer_encode(&c->words, text, size, specials, c->ids + count, c->room - count);
    if (more == TOKENIZER_UTF8) fail("the question", "is not UTF-8");
    if (more == TOKENIZER_NFC) fail("the question", "is not in Unicode's composed form (NFC)");
    if (more < 0) fail("the question", "is too long");
    return count + (size_t)more;
}

static size_t add_part(const chat *c, size_t count, int part) {
    size_t size;
    const char *text = tokenizer_chat(&c->words, part, &size);
    return add(c, count, text, size, 1);
}

static int64_t likeliest(const chat *c) {
    int64_t best = 0;
    for (int64_t id = 1; id < aicc_describe()->vocab_size; id++)
        if (c->logits[id] > c->logits[best]) best = id;
    return best;
}

static void answer(chat *c, const char *question) {
    size_t count = add_part(c, 0, c->turns++ ? CHAT_BETWEEN : CHAT_BEFORE_FIRST);
    count = add(c, count, question, strlen(question), 0); /* a user cannot write special tokens */
    count = add_part(c, count, CHAT_AFTER_USER);
    check(aicc_prefill(c->model, c->ids, (int32_t)count, c->logits), "reading the question");
    int32_t made = 0;
    double first = now();
    for (int64_t id = likeliest(c); made < c->most_tokens && !tokenizer_stops(&c->words, id); id = likeliest(c)) {
        size_t size;
        const char *piece = tokenizer_piece(&c->words, id, &size);
        fwrite(piece, 1, size, stdout);
        fflush(stdout);
        made++;
        int status = aicc_decode(c->model, id, c->logits);
        if (status == AICC_ERROR_CONTEXT || status == AICC_ERROR_PAGES) break; /* it has said all that there is room for */
        check(status, "answering");
    }
    putchar('\n');
    if (c->verbose)
        fprintf(stderr, "%zu tokens read, first answered after %.1f ms, then %d tokens, %.1f a second\n", count,
                first - c->start, made, made * 1e3 / (now() - first));
}

int main(int argc, char **argv) {
    chat c = {.most_tokens = 256, .start = now()};
    const char *folder = NULL, *question = NULL;
    aicc_options options = {.threads = 0};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-n") == 0 && i + 1 < argc) c.most_tokens = atoi(argv[++i]);
        else if (strcmp(argv[i], "-t") == 0 && i + 1 < argc) options.threads = atoi(argv[++i]);
        else if (strcmp(argv[i], "-v") == 0) c.verbose = 1;
        else if (!folder) folder = argv[i];
        else question = argv[i];
    }
    if (!folder) fail("usage", "chat FOLDER [-n TOKENS] [-t THREADS] [-v] [\"a question\"]");
    char path[4096];
    size_t size;
    snprintf(path, sizeof path, "%s/tokenizer.bin", folder);
    void *tokens = contents(path, &size);
    if (tokenizer_open(&c.words, tokens, size)) fail(path, "is no tokenizer");
    if (!tokenizer_chat(&c.words, 0, &size)) fail(path, "has no chat template");

    const aicc_description *about = aicc_describe();
    if (about->kind != AICC_DECODER) fail("the model", "does not write text");
    options.pages = (about->context_length + about->page_tokens - 1) / about->page_tokens;
    size = aicc_memory_size(&options); /* of the whole context; what is not used is never touched */
    void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
    c.room = (size_t)about->context_length * 8;
    c.ids = malloc(c.room * sizeof *c.ids);
    c.logits = malloc((size_t)about->vocab_size * sizeof *c.logits);
    if (!size || !memory || !c.ids || !c.logits) fail("the model", "there is not enough memory, or -t is out of range");
    snprintf(path, sizeof path, "%s/model.bin", folder);
    check(aicc_open_file(&c.model, &options, memory, size, path), path);

    static char line[65536];
    if (question) answer(&c, question);
    else
        while (printf("> "), fflush(stdout), fgets(line, sizeof line, stdin)) {
            line[strcspn(line, "\r\n")] = 0;
            c.start = now();
            if (*line) answer(&c, line);
        }
    aicc_close(c.model);
    free(memory), free(c.ids), free(c.logits), free(tokens);
    return 0;
}

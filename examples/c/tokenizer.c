#include "tokenizer.h"

#include <string.h>

enum { GPT2 = 1, DIGITS_GPT2, LLAMA3, QWEN2 };                            /* pattern */
enum { WHOLE_WORDS = 1, COMPOSED = 2 };                                   /* flags */
enum { LETTER = 1, NUMBER = 2, SPACE = 4, DIGIT = 8, UNSTABLE = 16, MARK = 32 }; /* classes of characters */
#define NONE 0xffffffffu
#define NO_MERGE INT32_MAX

int tokenizer_open(tokenizer *t, const void *bytes, size_t size) {
    const uint32_t *p = bytes;
    if (size < 40 || memcmp(p, "AICCTOK1", 8) != 0) return -1;
    const uint32_t *n = p + 2;
    for (int i = 2; i < 8; i++)
        if (n[i] > (1u << 28)) return -1;
    *t = (tokenizer){n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], 0, 0, 0, 0, 0, 0, 0, 0, 0};
    uint64_t words = 10 + 256 + 2ull * t->vocab + 1 + 4ull * t->merge_count + t->special_count + 3ull * t->range_count +
                     t->stop_count + 6;
    if (words * 4 + t->text_bytes != size) return -1;
    t->byte_id = p + 10;
    t->offsets = t->byte_id + 256;
    t->sorted = t->offsets + t->vocab + 1;
    t->merges = t->sorted + t->vocab;
    t->specials = t->merges + 4 * (size_t)t->merge_count;
    t->ranges = t->specials + t->special_count;
    t->stops = t->ranges + 3 * (size_t)t->range_count;
    t->chat = t->stops + t->stop_count;
    t->text = (const char *)(t->chat + 6);
    for (uint32_t i = 0; i < 256; i++)
        if (t->byte_id[i] >= t->vocab && t->byte_id[i] != NONE) return -1;
    for (uint32_t i = 0; i < t->vocab; i++)
        if (t->offsets[i] > t->offsets[i + 1] || t->sorted[i] >= t->vocab) return -1;
    if (t->offsets[t->vocab] > t->text_bytes) return -1;
    for (uint32_t i = 0; i < t->merge_count; i++)
        if (t->merges[4 * i + 2] >= NO_MERGE || t->merges[4 * i + 3] >= t->vocab) return -1;
    for (uint32_t i = 0; i < t->special_count; i++)
        if (t->specials[i] >= t->vocab) return -1;
    for (uint32_t i = 0; i < 3; i++)
        if ((uint64_t)t->chat[2 * i] + t->chat[2 * i + 1] > t->text_bytes) return -1;
    return 0;
}

const char *tokenizer_piece(const tokenizer *t, int64_t id, size_t *size) {
    if (id < 0 || id >= t->vocab) return *size = 0, "";
    *size = t->offsets[id + 1] - t->offsets[id];
    return t->text + t->offsets[id];
}

const char *tokenizer_chat(const tokenizer *t, int part, size_t *size) {
    *size = t->chat[2 * part + 1];
    return t->chat[3] ? t->text + t->chat[2 * part] : NULL; /* every template says something after the user's words */
}

int tokenizer_stops(const tokenizer *t, int64_t id) {
    for (uint32_t i = 0; i < t->stop_count; i++)
        if (t->stops[i] == id) return 1;
    return 0;
}

/* Length of the character at `s`, 0 if it is no UTF-8; `rune` is its number. */
static int character(const char *s, const char *end, uint32_t *rune) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *u = (const unsigned char *)s;
    int size = u[0] < 0x80 ? 1 : u[0] < 0xC0 ? 0 : u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : u[0] < 0xF8 ? 4 : 0;
    if (!size || size > end - s) return 0;
    *rune = size == 1 ? u[0] : u[0] & (0x7Fu >> size);
    for (int i = 1; i < size; i++) {
        if ((u[i] & 0xC0) != 0x80) return 0;
        *rune = *rune << 6 | (u[i] & 0x3F);
    }
    return *rune < least[size] || *rune > 0x10FFFF || (*rune >= 0xD800 && *rune < 0xE000) ? 0 : size;
}

/* Classes of the character at `s`, whose UTF-8 is known to be right; its length goes to `size`. 0 at the end. */
static uint32_t class_at(const tokenizer *t, const char *s, const char *end, int *size, uint32_t *rune) {
    *size = 0, *rune = 0;
    if (s >= end) return 0;
    *size = character(s, end, rune);
    uint32_t low = 0, high = t->range_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (t->ranges[3 * middle + 1] < *rune) low = middle + 1;
        else high = middle;
    }
    return low < t->range_count && t->ranges[3 * low] <= *rune ? t->ranges[3 * low + 2] : 0;
}

/* The end of the run of at most `most` characters from `s` with one of the classes `any`, or with none of them if `none`. */
static const char *run(const tokenizer *t, const char *s, const char *end, uint32_t any, int none, int most) {
    for (int size; s < end && most--; s += size) {
        uint32_t rune, classes = class_at(t, s, end, &size, &rune);
        if (((classes & any) == 0) != none) break;
    }
    return s;
}

/* Length of 's 't 're 've 'm 'll 'd at `s`; `fold`: also in capitals, and with the long s. */
static int contraction(const char *s, const char *end, int fold) {
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (end - s < 2 || *s != '\'') return 0;
    for (int i = 0; i < 7; i++) {
        int n = (int)strlen(endings[i]), same = end - s > n;
        for (int k = 0; same && k < n; k++)
            same = s[1 + k] == endings[i][k] || (fold && s[1 + k] == endings[i][k] - 32);
        if (same) return 1 + n;
    }
    return fold && end - s > 2 && memcmp(s + 1, "\xC5\xBF", 2) == 0 ? 3 : 0;
}

/* White space from `s` to `end` as one word, but its last character if a word follows: \s+(?!\S)|\s+ */
static const char *spaces(const tokenizer *t, const char *s, const char *end) {
    const char *after = run(t, s, end, SPACE, 0, -1), *last = after;
    if (after == end) return after;
    while (last > s && ((unsigned char)*--last & 0xC0) == 0x80) {}
    return last > s ? last : after;
}

/* The end of the word that begins at `s`, GPT-2's way: contractions| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static const char *word_gpt2(const tokenizer *t, const char *s, const char *end) {
    int size = contraction(s, end, 0);
    if (size) return s + size;
    uint32_t rune;
    const char *first = s + (*s == ' ' && s + 1 < end);
    uint32_t classes = class_at(t, first, end, &size, &rune);
    if (classes & SPACE) return spaces(t, s, end);
    if (classes & (LETTER | NUMBER)) return run(t, first, end, classes & (LETTER | NUMBER), 0, -1);
    return run(t, first, end, LETTER | NUMBER | SPACE, 1, -1);
}

/* The way of Llama 3 and Qwen 2, which take 3 digits at once and 1:
 * (?i:contractions)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static const char *word_llama3(const tokenizer *t, const char *s, const char *end, int digits) {
    int size = contraction(s, end, 1), next_size;
    if (size) return s + size;
    uint32_t rune, next_rune, classes = class_at(t, s, end, &size, &rune);
    uint32_t next = class_at(t, s + size, end, &next_size, &next_rune);
    if (classes & LETTER) return run(t, s, end, LETTER, 0, -1);
    if (rune != '\r' && rune != '\n' && !(classes & NUMBER) && (next & LETTER)) return run(t, s + size, end, LETTER, 0, -1);
    if (classes & NUMBER) return run(t, s, end, NUMBER, 0, digits);
    int marks_follow = *s == ' ' && next_size && !(next & (LETTER | NUMBER | SPACE));
    if (marks_follow || !(classes & SPACE)) {
        s = run(t, s + (marks_follow ? 1 : 0), end, LETTER | NUMBER | SPACE, 1, -1);
        while (s < end && (*s == '\r' || *s == '\n')) s++;
        return s;
    }
    const char *after = run(t, s, end, SPACE, 0, -1);
    for (const char *line = after; line > s; line--)
        if (line[-1] == '\r' || line[-1] == '\n') return line;
    return spaces(t, s, end);
}

static const char *word(const tokenizer *t, const char *s, const char *end) {
    if (t->pattern == LLAMA3) return word_llama3(t, s, end, 3);
    if (t->pattern == QWEN2) return word_llama3(t, s, end, 1);
    if (t->pattern == DIGITS_GPT2) { /* every digit is cut out first, and ends what GPT-2's words see */
        const char *digit = run(t, s, end, DIGIT, 0, 1);
        if (digit > s) return digit;
        end = run(t, s, end, DIGIT, 1, -1);
    }
    return word_gpt2(t, s, end);
}

/* The merge of two ids: {left, right, rank, result}; null if there is none. */
static const uint32_t *merge_of(const tokenizer *t, uint32_t left, uint32_t right) {
    uint32_t low = 0, high = t->merge_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const uint32_t *m = t->merges + 4 * (size_t)middle;
        if (m[0] == left && m[1] == right) return m;
        if (m[0] < left || (m[0] == left && m[1] < right)) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

static uint32_t whole_word(const tokenizer *t, const char *s, size_t size) {
    uint32_t low = 0, high = t->vocab;
    while (low < high) {
        uint32_t middle = (low + high) / 2, id = t->sorted[middle];
        size_t n = t->offsets[id + 1] - t->offsets[id];
        int order = memcmp(t->text + t->offsets[id], s, n < size ? n : size);
        if (order == 0 && n == size) return id;
        if (order < 0 || (order == 0 && n < size)) low = middle + 1;
        else high = middle;
    }
    return NONE;
}

/* While a word is merged, an element of `ids` holds an id and above it the rank of its merge with the next. */
static void rank(const tokenizer *t, int64_t *ids, size_t i, size_t count) {
    const uint32_t *m = i + 1 < count ? merge_of(t, (uint32_t)ids[i], (uint32_t)ids[i + 1]) : NULL;
    ids[i] = (int64_t)(m ? m[2] : (uint32_t)NO_MERGE) << 32 | (uint32_t)ids[i];
}

static size_t encode_word(const tokenizer *t, const char *s, size_t size, int64_t *ids) {
    uint32_t whole = t->flags & WHOLE_WORDS ? whole_word(t, s, size) : NONE;
    if (whole != NONE) return ids[0] = whole, 1;
    size_t count = 0;
    for (size_t i = 0; i < size; i++)
        if (t->byte_id[(unsigned char)s[i]] != NONE) ids[count++] = t->byte_id[(unsigned char)s[i]];
    for (size_t i = 0; i < count; i++) rank(t, ids, i, count);
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i < count; i++)
            if (ids[i] >> 32 < ids[best] >> 32) best = i;
        if (!count || ids[best] >> 32 == NO_MERGE) break;
        ids[best] = merge_of(t, (uint32_t)ids[best], (uint32_t)ids[best + 1])[3];
        count--;
        memmove(ids + best + 1, ids + best + 2, (count - best - 1) * sizeof *ids);
        rank(t, ids, best, count);
        if (best) rank(t, ids, best - 1, count);
    }
    for (size_t i = 0; i < count; i++) ids[i] = (uint32_t)ids[i];
    return count;
}

/* The first special token in the text: where it is, and its id. The longest of those at one place. */
static const char *find_special(const tokenizer *t, const char *s, const char *end, uint32_t *id) {
    for (; s < end; s++)
        for (uint32_t i = 0; i < t->special_count; i++) { /* longest first */
            size_t size;
            const char *name = tokenizer_piece(t, t->specials[i], &size);
            if (size && (size_t)(end - s) >= size && memcmp(s, name, size) == 0) return *id = t->specials[i], s;
        }
    return end;
}

static long check(const tokenizer *t, const char *s, const char *end) {
    uint32_t before = 0, rune;
    for (int size; s < end; s += size) {
        if (!(size = character(s, end, &rune))) return TOKENIZER_UTF8;
        if (!(t->flags & COMPOSED)) continue;
        uint32_t classes = class_at(t, s, end, &size, &rune);
        if ((classes & UNSTABLE) || (classes & before & MARK)) return TOKENIZER_NFC;
        before = classes;
    }
    return 0;
}

long tokenizer_encode(const tokenizer *t, const char *text, size_t size, int specials, int64_t *ids, size_t room) {
    const char *s = text, *end = text + size;
    long status = check(t, s, end), count = 0;
    if (status) return status;
    if (size > room) return TOKENIZER_ROOM;
    while (s < end) {
        uint32_t special = NONE;
        const char *stop = specials ? find_special(t, s, end, &special) : end;
        for (const char *next; s < stop; s = next) {
            next = word(t, s, stop);
            if (next == s) next = run(t, s, stop, 0, 1, 1); /* classes that contradict themselves: one character at least */
            count += (long)encode_word(t, s, (size_t)(next - s), ids + count);
        }
        if (stop < end) {
            size_t length;
            tokenizer_piece(t, special, &length);
            ids[count++] = special;
            s += length;
        }
    }
    return count;
}

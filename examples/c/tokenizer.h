/* Byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen 2) over the tokenizer.bin that `aicc compile --emit lib` writes.
 *
 * Nothing is allocated: the file is read or mapped by the caller and stays where it is. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

/* Negative results of tokenizer_encode(). */
enum { TOKENIZER_UTF8 = -1, TOKENIZER_ROOM = -2, TOKENIZER_NFC = -3 };

typedef struct tokenizer {
    uint32_t pattern, flags, vocab, merge_count, special_count, range_count, stop_count, text_bytes;
    const uint32_t *byte_id, *offsets, *sorted, *merges, *specials, *ranges, *stops, *chat;
    const char *text;
} tokenizer;

/* The parts of a chat that are not the user's or the model's words. */
enum { CHAT_BEFORE_FIRST, CHAT_AFTER_USER, CHAT_BETWEEN };

/* 0, or -1 if these bytes are no tokenizer. `bytes` is aligned to 4. */
int tokenizer_open(tokenizer *t, const void *bytes, size_t size);
/* Ids of UTF-8 text, their count, or a negative number: no UTF-8, more bytes than `room`, or text that the model wants
 * in Unicode's composed form (NFC) and is not. `specials`: whether names of special tokens in the text mean the token;
 * they must not where the text is a user's. */
long tokenizer_encode(const tokenizer *t, const char *text, size_t size, int specials, int64_t *ids, size_t room);
/* The bytes of a token; they may end within a UTF-8 character. */
const char *tokenizer_piece(const tokenizer *t, int64_t id, size_t *size);
/* A part of the chat; null if the model has no chat template of this form. */
const char *tokenizer_chat(const tokenizer *t, int part, size_t *size);
/* Whether a token ends an answer. */
int tokenizer_stops(const tokenizer *t, int64_t id);

#endif

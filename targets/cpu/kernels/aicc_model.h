/* The C interface of a compiled model: everything a program needs to run it, in C11.
 *
 * A model is a shared or static library with these functions and one weights file. The caller owns all memory: ask
 * aicc_memory_size() how much, hand over that much, and get it back when aicc_close() returns. Nothing is allocated
 * after aicc_open(), there are no globals, and one library may be opened several times. A model is used by one thread
 * at a time; it computes on its own threads. Every input is checked: bad input gives an error code, never a crash.
 *
 *     aicc_options options = {.threads = 0, .pages = 64};
 *     size_t bytes = aicc_memory_size(&options);
 *     void *memory = aligned_alloc(4096, bytes);
 *     aicc_model *model;
 *     int status = aicc_open_file(&model, &options, memory, bytes, "weights/model.bin");
 *     if (status != AICC_OK) fprintf(stderr, "%s\n", aicc_error_text(status));
 */
#ifndef AICC_MODEL_H
#define AICC_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define AICC_ABI_VERSION 2
#define AICC_MAX_RANK 8

#ifndef AICC_API
#define AICC_API __attribute__((visibility("default")))
#endif

typedef enum aicc_status {
    AICC_OK = 0,
    AICC_ERROR_ARGUMENT = 1, /* a null pointer, or a number outside its range */
    AICC_ERROR_MEMORY = 2,   /* the memory is smaller than aicc_memory_size(), or not aligned to 64 bytes */
    AICC_ERROR_WEIGHTS = 3,  /* the weights are not those this model was compiled with */
    AICC_ERROR_FILE = 4,     /* the weights file cannot be opened or mapped */
    AICC_ERROR_THREADS = 5,  /* the system refused to start a thread */
    AICC_ERROR_TOKEN = 6,    /* a token outside the vocabulary */
    AICC_ERROR_BATCH = 7,    /* a batch that contradicts itself, or more tokens than max_batch_tokens */
    AICC_ERROR_PAGES = 8,    /* a page number outside the pool, or too few pages for a sequence */
    AICC_ERROR_CONTEXT = 9,  /* a sequence longer than the model's context */
    AICC_ERROR_KIND = 10,    /* a tensor call on a decoder, or the other way round */
    AICC_ERROR_TENSOR = 11,  /* a tensor whose type or shape the signature does not allow */
    AICC_ERROR_MACHINE = 12, /* the system keeps instructions that this library uses from the process (AMX) */
} aicc_status;

typedef enum aicc_kind { AICC_DECODER = 1, AICC_TENSORS = 2 } aicc_kind;

/* Element types, of tensors at this interface and of values inside the weights. */
typedef enum aicc_type {
    AICC_NONE = 0,
    AICC_F32 = 1,
    AICC_F16 = 2,
    AICC_BF16 = 3,
    AICC_I64 = 4,
    AICC_I32 = 5,
    AICC_Q8 = 6, /* weights only: unsigned bytes with scales */
    AICC_Q4 = 7, /* weights only: unsigned nibbles with scales */
    AICC_I8 = 8, /* keys and values only: signed bytes with a scale for each head and token */
} aicc_type;

/* One input or output of a tensor model. A dimension of -1 is dynamic. */
typedef struct aicc_port {
    const char *name;
    int32_t type; /* aicc_type */
    int32_t rank;
    int64_t shape[AICC_MAX_RANK];
} aicc_port;

typedef struct aicc_signature {
    const char *name;
    int32_t input_count, output_count;
    const aicc_port *inputs, *outputs;
} aicc_signature;

/* What a model is; constant for its library. Sizes in bytes unless said. */
typedef struct aicc_description {
    uint32_t abi_version; /* AICC_ABI_VERSION of the library */
    int32_t kind;         /* aicc_kind */
    const char *name;
    const char *isa; /* "portable", "avx2", "avx512-vnni", "amx", "neon-dotprod", "neon-i8mm" or "rvv" */
    uint64_t weights_bytes;
    uint64_t weights_id; /* must stand in the weights' header */
    int32_t vocab_size;          /* of a decoder; 0 for tensor models */
    int32_t context_length;      /* most tokens of one sequence */
    int32_t layer_count;
    int32_t page_tokens;         /* tokens a page of KV memory holds */
    uint64_t page_bytes;         /* KV memory of one page, all layers */
    int32_t max_batch_tokens;    /* most tokens of one aicc_forward(); aicc_run() cuts larger batches itself */
    int32_t max_batch_sequences; /* most sequences of one aicc_forward() */
    int32_t prompts_apart;       /* 1 if tokens of prompts give other results than the same tokens decoded, else 0 */
    /* Tensor models; zero for decoders. */
    int32_t signature_count;
    const aicc_signature *signatures;
} aicc_description;

typedef struct aicc_options {
    int32_t threads; /* threads to compute with, the caller's included; 0: every core this process may use; 1: none started */
    int32_t pages;   /* pages of KV memory; ignored by tensor models */
} aicc_options;

/* New tokens of several sequences. Sequence i adds tokens[starts[i] .. starts[i+1]) after past[i] cached tokens, and
 * owns pages[page_starts[i] .. page_starts[i+1]), enough for past and new tokens. A page may be shared by sequences as
 * long as none of them writes into it. */
typedef struct aicc_batch {
    int32_t sequences;          /* B */
    int32_t token_count;        /* T, 1 .. max_batch_tokens */
    int32_t page_count;         /* length of pages */
    int32_t logit_count;        /* L, rows whose logits are wanted; may be 0 */
    const int64_t *tokens;      /* [T] */
    const int32_t *starts;      /* [B+1], first 0, last T, rising: every sequence adds at least one token */
    const int32_t *past;        /* [B] */
    const int32_t *pages;       /* [page_count] */
    const int32_t *page_starts; /* [B+1], first 0, last page_count, not falling */
    const int32_t *logit_rows;  /* [L], indices into tokens */
    int32_t first_prompt;       /* sequences from this one on, 0 .. B, add tokens of their prompts: see aicc_forward() */
} aicc_batch;

typedef struct aicc_tensor {
    void *data; /* contiguous, aligned to its element */
    int32_t type;
    int32_t rank;
    int64_t shape[AICC_MAX_RANK];
} aicc_tensor;

typedef struct aicc_model aicc_model;

AICC_API const aicc_description *aicc_describe(void);
/* Bytes of memory aicc_open() needs for these options; 0 if the options are out of range. KV memory is the last part
 * of it and is not touched before it is used. */
AICC_API size_t aicc_memory_size(const aicc_options *options);
/* `memory` and `weights` are aligned to 64 bytes and stay valid until aicc_close(). */
AICC_API int aicc_open(aicc_model **model, const aicc_options *options, void *memory, size_t memory_bytes,
                       const void *weights, size_t weights_bytes);
/* The same, mapping the weights from a file. */
AICC_API int aicc_open_file(aicc_model **model, const aicc_options *options, void *memory, size_t memory_bytes,
                            const char *path);
/* One step of a decoder: writes keys and values of the new tokens into their pages, and float [L][vocab_size] to
 * `logits` (may be null if L is 0). A row's result depends on its own sequence alone, to the last bit, and, where
 * aicc_description.prompts_apart, on whether it was added as part of a prompt: many rows are then computed faster and
 * rounded otherwise than few. */
AICC_API int aicc_forward(aicc_model *model, const aicc_batch *batch, float *logits);
/* One sequence that uses pages in order: add `count` tokens (any number; cut into batches here); the logits [vocab_size] of the
 * last of them if `logits` is not null. */
AICC_API int aicc_prefill(aicc_model *model, const int64_t *tokens, int32_t count, float *logits);
/* The next token of that sequence after its prompt. */
AICC_API int aicc_decode(aicc_model *model, int64_t token, float *logits);
/* Start that one sequence again. */
AICC_API void aicc_reset(aicc_model *model);
/* A tensor model: inputs and outputs in the signature's order. Inputs are of one shape [batch, length], length at most
 * context_length, any batch. Types and shapes of outputs are filled in: [batch, length, width]; their data must hold that
 * many elements. Where an input is a mask of 0 and 1, a sequence's outputs do not depend on what is hidden, nor on the
 * sequences beside it, to the last bit; those of a sequence that hides all its tokens are NaN. */
AICC_API int aicc_run(aicc_model *model, int32_t signature, const aicc_tensor *inputs, aicc_tensor *outputs);
/* Threads the model computes with. */
AICC_API int32_t aicc_threads(const aicc_model *model);
/* Stops the threads and unmaps the file. The memory is the caller's again. */
AICC_API void aicc_close(aicc_model *model);
/* A sentence for a code; never null. */
AICC_API const char *aicc_error_text(int status);

#ifdef __cplusplus
}
#endif
#endif

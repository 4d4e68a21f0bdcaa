/* What Python calls for bf12: a weight encoded, expanded or multiplied by one build, shared among threads. */
#include "bf12.h"

#include <stdatomic.h>
#include <stdlib.h>

enum { ENCODED_AT_ONCE = 16 };

/* ---- encode ---- */

enum { MOST_THREADS = 1024 };

struct encoding {
    const struct bf12_build *build;
    const struct bf12 *to;
    const uint16_t *from;
    int64_t stride, most;
    uint32_t *entries[MOST_THREADS];
    int64_t counts[MOST_THREADS];
    atomic_int failed; /* 0, or what is returned */
};

/* A thread's rows. Its entries go to memory of its own: how many there are before them is not known yet. */
static void encode_part(void *argument, int64_t me, int64_t all) {
    struct encoding *e = argument;
    const int64_t first = e->to->out * me / all, last = e->to->out * (me + 1) / all;
    int64_t count = 0;
    e->entries[me] = malloc((size_t)(e->most + GROUP) * sizeof(uint32_t)); /* pages that stay untouched cost nothing */
    if (!e->entries[me]) atomic_store(&e->failed, -2);
    for (int64_t row = first; row < last && !atomic_load(&e->failed); row += ENCODED_AT_ONCE) {
        int64_t end = last - row < ENCODED_AT_ONCE ? last : row + ENCODED_AT_ONCE;
        count = e->build->encode(e->to, e->from, e->stride, row, end, e->entries[me], count, e->most);
        if (count < 0) atomic_store(&e->failed, -1);
    }
    e->counts[me] = count;
}

/* bfloat16 [out, in], rows `stride` elements apart, to bf12. The number of exceptions; -1 where there are more than
 * `most`, -2 where there is no memory. */
EXPORT int64_t outsize_bf12_encode(int build, int threads, const uint16_t *from, int64_t stride, int64_t most,
                                   int64_t out, int64_t in, uint8_t *body, uint8_t *bases, uint32_t *starts,
                                   uint32_t *entries) {
    struct bf12 to = {body, bases, starts, entries, out, in, (in + GROUP - 1) / GROUP};
    struct encoding *e = calloc(1, sizeof *e);
    int64_t total = 0, all = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    if (!e) return -2;
    e->build = outsize_builds[build]->bf12, e->to = &to, e->from = from, e->stride = stride, e->most = most;
    all = outsize_team((int)all, encode_part, e);
    for (int64_t i = 0; i < all; i++) {
        if (total + e->counts[i] > most && !e->failed) e->failed = -1;
        if (!e->failed) {
            memcpy(entries + total, e->entries[i], (size_t)e->counts[i] * sizeof(uint32_t));
            for (int64_t row = out * i / all; row < out * (i + 1) / all; row++) starts[row] += (uint32_t)total;
            total += e->counts[i];
        }
        free(e->entries[i]);
    }
    starts[out] = (uint32_t)total;
    if (e->failed) total = e->failed;
    free(e);
    return total;
}

/* ---- expand and multiply ---- */

struct work {
    const struct bf12_build *build;
    const struct bf12 *weight;
    const struct bf12_call *call; /* multiply, or null: expand */
    uint16_t *to;
    int64_t first; /* row that the work's first is */
};

static void work_part(void *argument, int64_t first, int64_t last) {
    const struct work *w = argument;
    if (w->call)
        w->build->multiply(w->call, first, last);
    else
        w->build->expand(w->weight, w->to + first * w->weight->in, w->first + first, w->first + last);
}

static void share(struct work *w, int threads, int64_t rows) {
    outsize_share(threads, work_part, w, rows, outsize_rows_at_once(rows, threads));
}

/* Rows first .. last as bfloat16, one after another from `to` on. */
EXPORT void outsize_bf12_expand(int build, int threads, int64_t first, int64_t last, uint16_t *to, int64_t out,
                                int64_t in, uint8_t *body, uint8_t *bases, uint32_t *starts, uint32_t *entries) {
    struct bf12 weight = {body, bases, starts, entries, out, in, (in + GROUP - 1) / GROUP};
    struct work w = {.build = outsize_builds[build]->bf12, .weight = &weight, .to = to, .first = first};
    share(&w, threads, last - first);
}

/* y [rows, out] = x [rows, in] @ weight.T + bias, for 1 to 16 rows. 0, or -2 where there is no memory. */
EXPORT int outsize_bf12_linear(int build, int threads, int64_t rows, const void *x, int type, int64_t out, int64_t in,
                               uint8_t *body, uint8_t *bases, uint32_t *starts, uint32_t *entries, const void *bias,
                               void *y) {
    struct bf12 weight = {body, bases, starts, entries, out, in, (in + GROUP - 1) / GROUP};
    struct bf12_call call = {.weight = &weight, .x = x, .bias = bias, .y = y, .rows = rows, .y_stride = out,
                             .type = type};
    struct work w = {.build = outsize_builds[build]->bf12, .weight = &weight, .call = &call};
    void *scratch = malloc((size_t)(rows * weight.groups * GROUP) * sizeof(float) + 64);
    if (!scratch) return -2;
    call.ordered = (void *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    w.build->order(&call, 0, rows);
    share(&w, threads, out);
    free(scratch);
    return 0;
}

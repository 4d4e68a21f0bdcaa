/* What Python calls: which builds there are, and one multiplication by any of them, shared among threads. */
#include "kernels.h"

#include <stdatomic.h>
#include <stdlib.h>

#ifdef __x86_64__
#include <cpuid.h>
#endif

enum { BUILDS = 5 };

const struct build *const outsize_builds[BUILDS] = {
    &outsize_baseline, &outsize_avx2, &outsize_avx512, &outsize_vnni, &outsize_bf16,
};

EXPORT int outsize_abi(void) { return ABI; }

/* Bit i: this library has build i. */
EXPORT unsigned outsize_built(void) {
    unsigned mask = 0;
    for (int i = 0; i < BUILDS; i++) mask |= outsize_builds[i]->packed ? 1u << i : 0;
    return mask;
}

/* Bit i: this processor, and the system that saves its registers, can run build i. */
EXPORT unsigned outsize_runnable(void) {
    unsigned mask = 1;
#ifdef __x86_64__
    unsigned a, b, c, d, b7, c7, d7, a71 = 0, most, kept, unused;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return mask;
    if (!__get_cpuid_count(7, 0, &most, &b7, &c7, &d7)) return mask;
    if (most >= 1 && __get_cpuid_count(7, 1, &a, &b, &unused, &d)) a71 = a;
    __asm__("xgetbv" : "=a"(kept), "=d"(unused) : "c"(0));
    if ((kept & 0x6) != 0x6 || !(c & bit_FMA) || !(c & bit_F16C) || !(b7 & bit_AVX2)) return mask;
    mask |= 1u << 1;
    const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    if ((kept & 0xe6) != 0xe6 || (b7 & needed) != needed) return mask;
    mask |= 1u << 2;
    if (!(c7 & 1u << 11)) return mask; /* AVX512_VNNI */
    mask |= 1u << 3;
    if (a71 & 1u << 5) mask |= 1u << 4; /* AVX512_BF16 */
#endif
    return mask;
}

/* Whether the processor multiplies tiles of bf16 (AMX), which torch's matmul makes use of. */
EXPORT int outsize_multiplies_tiles(void) {
#ifdef __x86_64__
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) return (d >> 22 & 1) && (d >> 24 & 1); /* AMX_BF16, AMX_TILE */
#endif
    return 0;
}

/* One function of a build over one call, for threads that share it. */
struct step {
    void (*work)(const struct call *, int64_t, int64_t);
    const struct call *call;
};

static void run_step(void *argument, int64_t first, int64_t last) {
    const struct step *step = argument;
    step->work(step->call, first, last);
}

static void share(int threads, void (*work)(const struct call *, int64_t, int64_t), const struct call *call,
                  int64_t count, int64_t piece) {
    struct step step = {work, call};
    outsize_share(threads, run_step, &step, count, piece);
}

void *outsize_scratch(size_t bytes, void **whole) {
    *whole = malloc(bytes + 64);
    return *whole ? (void *)(((uintptr_t)*whole + 63) & ~(uintptr_t)63) : NULL;
}

/* y [rows, out] = x [rows, in] @ weight [out, in].T + bias, for 1 to 16 rows. 0, or -1 where there is no memory. */
EXPORT int outsize_plain(int build, int threads, int64_t rows, int64_t in, int64_t out, const void *x, int x_type,
                         const void *weight, int weight_type, const void *bias, void *y) {
    struct call c = {.rows = rows, .in = in, .out = out, .x = x, .x_type = x_type, .weight = weight,
                     .weight_type = weight_type, .bias = bias, .y = y, .y_stride = out};
    void *whole;
    c.padded = (in + PAD - 1) / PAD * PAD;
    c.plain = outsize_scratch((size_t)(rows * c.padded) * sizeof(float), &whole);
    if (!c.plain) return -1;
    share(rows * in < SHARED_FROM ? 1 : threads, outsize_builds[build]->widen, &c, rows,
          outsize_piece(rows, threads));
    share(threads, outsize_builds[build]->plain, &c, out, outsize_rows_at_once(out, threads));
    free(whole);
    return 0;
}

size_t outsize_lay_out(struct call *c, char *base) {
    const int block = c->packed->block;
    const size_t prepared = prepared_bytes(c->packed->kind, block);
    const int64_t blocks = (c->in + block - 1) / block, padded = (blocks + LANES - 1) / LANES * LANES;
    size_t at = 0;
    for (int64_t row = 0, group = 0; row < c->rows; group++) {
        const int64_t together = packed_rows_at_once(c->rows - row, block);
        const size_t count = (size_t)(padded * together), values = count * prepared, floats = count * sizeof(float);
        if (base) {
            struct rows *to = &c->quantised[group];
            to->blocks = padded;
            to->values = (int8_t *)(base + at);
            to->scales = (float *)(base + at + values);
            to->sums = (float *)(base + at + values + floats);
            memset(to->sums, 0, floats); /* what pads them is multiplied by 0, and must be a number */
        }
        at += values + 2 * floats;
        row += together;
    }
    return at;
}

/* As outsize_plain, with a weight of `bits` bits in groups; see struct packed. */
EXPORT int outsize_packed(int build, int threads, int64_t rows, int64_t in, int64_t out, const void *x, int x_type,
                          const void *values, int kind, int64_t stride, int64_t group, int block, const void *scale,
                          int scale_type, const void *zero, int zero_kind, const void *bias, void *y) {
    struct packed w = {.in = in, .out = out, .group = group, .groups = (in + group - 1) / group, .stride = stride,
                       .values = values, .scale = scale, .zero = zero, .kind = kind, .scale_type = scale_type,
                       .zero_kind = zero_kind, .block = block};
    struct call c = {.rows = rows, .in = in, .out = out, .x = x, .x_type = x_type, .packed = &w, .bias = bias, .y = y,
                     .y_stride = out};
    void *whole;
    char *base = outsize_scratch(outsize_lay_out(&c, NULL), &whole);
    if (!base) return -1;
    outsize_lay_out(&c, base);
    const int64_t blocks = (in + block - 1) / block;
    share(rows * in < SHARED_FROM ? 1 : threads, outsize_builds[build]->quantise, &c, blocks, outsize_piece(blocks, threads));
    share(threads, outsize_builds[build]->packed, &c, out, outsize_rows_at_once(out, threads));
    free(whole);
    return 0;
}

/* Rows first .. last of the weight itself, of type y_type: y [last - first, in]. */
EXPORT void outsize_dequantise(int build, int threads, int64_t in, int64_t first, int64_t last, const void *values,
                               int kind, int64_t stride, int64_t group, int block, const void *scale, int scale_type,
                               const void *zero, int zero_kind, void *y, int y_type) {
    struct packed w = {.in = in, .out = last, .group = group, .groups = (in + group - 1) / group, .stride = stride,
                       .values = values, .scale = scale, .zero = zero, .kind = kind, .scale_type = scale_type,
                       .zero_kind = zero_kind, .block = block};
    struct call c = {.in = in, .out = last, .first = first, .x_type = y_type, .packed = &w, .y = y};
    share(threads, outsize_builds[build]->dequantise, &c, last - first, outsize_piece(last - first, threads));
}

/* ---- the memory's own rate ---- */

enum { READ_AT_ONCE = 1 << 14 /* words */ };

struct reading {
    const uint64_t *words;
    _Atomic uint64_t sum;
};

static void read_part(void *argument, int64_t first, int64_t last) {
    struct reading *r = argument;
    uint64_t sums[STREAMS] = {0};
    const int64_t count = last - first, apart = count / STREAMS;
    const uint64_t *from = r->words + first;
    for (int64_t i = 0; i + 32 <= apart; i += 32)
        for (int s = 0; s < STREAMS; s++)
            for (int k = 0; k < 32; k++) sums[s] += from[s * apart + i + k];
    for (int s = 0; s < STREAMS; s++)
        for (int64_t i = apart & ~(int64_t)31; i < apart; i++) sums[s] += from[s * apart + i];
    for (int64_t i = STREAMS * apart; i < count; i++) sums[0] += from[i];
    for (int s = 1; s < STREAMS; s++) sums[0] += sums[s];
    atomic_fetch_add_explicit(&r->sum, sums[0], memory_order_relaxed);
}

/* The sum of `count` words: what reading them takes, as the kernels read weights, and next to nothing else. */
EXPORT uint64_t outsize_read(int threads, const uint64_t *words, int64_t count) {
    struct reading r = {words, 0};
    outsize_share(threads, read_part, &r, count, READ_AT_ONCE);
    return r.sum;
}

/* ---- normalisation ---- */

enum { NORMALISED_BY_ALL = 1 << 16 }; /* numbers: fewer are done by the calling thread sooner than a team is woken */

struct normalising {
    const struct norm *norm;
    void (*normalise)(const struct norm *, int64_t, int64_t);
};

static void some_rows(void *argument, int64_t me, int64_t all) {
    const struct normalising *n = argument;
    n->normalise(n->norm, n->norm->rows * me / all, n->norm->rows * (me + 1) / all);
}

/* See struct norm. */
EXPORT void outsize_norm(int build, int threads, int64_t rows, int64_t width, const void *x, const void *weight, void *y,
                         int type, float eps, int kind) {
    const struct norm norm = {rows, width, x, weight, y, eps, type, kind};
    struct normalising n = {&norm, outsize_builds[build]->normalise};
    outsize_team(rows * width < NORMALISED_BY_ALL ? 1 : threads, some_rows, &n);
}

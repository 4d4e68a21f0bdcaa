/* VNNI and AVX-512 BF16: dot products of pairs of bf16, summed in fp32. */
#include "kernels.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#endif

#define VNNI 1
#define BFLOAT 1
#include "vectors512.h"

#include "dequantise.h"
#include "norm.h"
#include "plain.h"

enum { PAIRED = 32 }; /* bf16 numbers of a vector */

INLINE int in_bf16(const struct call *c) { return c->x_type == BF16 && c->weight_type == BF16; }

/* Rows of x as they are, padded: their scratch is that of floats. */
static void widen_or_pad(const struct call *c, int64_t first, int64_t last) {
    if (!in_bf16(c)) {
        widen(c, first, last);
        return;
    }
    for (int64_t row = first; row < last; row++) {
        uint16_t *to = (uint16_t *)c->plain + row * c->padded;
        memcpy(to, (const uint16_t *)c->x + row * c->in, (size_t)c->in * 2);
        memset(to + c->in, 0, (size_t)(c->padded - c->in) * 2);
    }
}

/* As plain_outputs. */
INLINE void bf16_outputs(float *sums, const uint16_t *weights, int64_t apart, const uint16_t *x, int64_t in,
                         int64_t padded, int streams, int rows) {
    const int parts = rows < 4 ? 2 : 1;
    vector sum[2][MOST_SUMS];
    for (int i = 0; i < streams * rows; i++) sum[0][i] = sum[1][i] = zero_vector();
    int64_t i = 0;
    for (; i + PAIRED * parts <= in; i += PAIRED * parts)
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++)
#pragma GCC unroll 2
            for (int p = 0; p < parts; p++) {
                const uint16_t *w = weights + s * apart + i + p * PAIRED;
                prefetch(w);
                __m512bh weight = (__m512bh)LOAD(w);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
                    sum[p][s * rows + r] = _mm512_dpbf16_ps(sum[p][s * rows + r], weight,
                                                            (__m512bh)LOAD(x + r * padded + i + p * PAIRED));
            }
    for (; i < in; i += PAIRED) {
        const __mmask32 mask = in - i < PAIRED ? (1u << (in - i)) - 1 : ~0u;
        for (int s = 0; s < streams; s++) {
            __m512bh weight = (__m512bh)_mm512_maskz_loadu_epi16(mask, weights + s * apart + i);
            for (int r = 0; r < rows; r++)
                sum[0][s * rows + r] =
                    _mm512_dpbf16_ps(sum[0][s * rows + r], weight, (__m512bh)LOAD(x + r * padded + i));
        }
    }
    for (int j = 0; j < streams * rows; j++) sums[j] = sum_of(add(sum[0][j], sum[1][j]));
}

static void bf16_rows(const struct call *c, int64_t out, int64_t apart, int outputs) {
    const uint16_t *w = (const uint16_t *)c->weight + out * c->in;
    const int64_t step = apart * c->in;
    for (int64_t row = 0; row < c->rows;) {
        const int together = rows_at_once(c->rows - row), streams = outputs == 1 ? 1 : streams_of(together);
        const uint16_t *x = (const uint16_t *)c->plain + row * c->padded;
        for (int first = 0; first < outputs; first += streams) {
            float sums[MOST_SUMS];
#define OUTPUTS(count, kept)                                                                       \
    if (together == count && outputs > 1)                                                          \
        bf16_outputs(sums, w + first * step, step, x, c->in, c->padded, kept, count);              \
    else if (together == count)                                                                    \
        bf16_outputs(sums, w, 0, x, c->in, c->padded, 1, count);
            OUTPUTS(1, 8) OUTPUTS(2, 4) OUTPUTS(4, 4) OUTPUTS(8, 2)
#undef OUTPUTS
            for (int s = 0; s < streams; s++)
                for (int r = 0; r < together; r++)
                    finish(c, row + r, out + (first + s) * apart, sums[s * together + r]);
        }
        row += together;
    }
}

static void plain_or_bf16(const struct call *c, int64_t first, int64_t last) {
    if (!in_bf16(c)) {
        plain(c, first, last);
        return;
    }
    const int64_t apart = (last - first) / STREAMS;
    for (int64_t out = first; out < first + apart; out++) bf16_rows(c, out, apart, STREAMS);
    for (int64_t out = first + STREAMS * apart; out < last; out++) bf16_rows(c, out, 0, 1);
}

const struct build outsize_bf16 = {widen_or_pad, plain_or_bf16, outsize_quantise_vnni, outsize_packed_vnni, dequantise, normalise, &outsize_bf12_bf16};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct build outsize_bf16 = {0, 0, 0, 0, 0, 0, 0};
#endif

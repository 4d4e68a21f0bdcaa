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

INLINE void bf16_row(float *sums, const uint16_t *w, const uint16_t *x, int64_t in, int64_t padded, int rows) {
    const int parts = rows >= 4 ? 2 : 4;
    vector sum[16];
    for (int i = 0; i < rows * parts; i++) sum[i] = zero_vector();
    int64_t i = 0;
    for (; i + PAIRED * parts <= in; i += PAIRED * parts)
        for (int p = 0; p < parts; p++) {
            const int64_t at = i + p * PAIRED;
            prefetch(w + at);
            __m512bh weight = (__m512bh)LOAD(w + at);
            for (int r = 0; r < rows; r++)
                sum[p * rows + r] = _mm512_dpbf16_ps(sum[p * rows + r], weight, (__m512bh)LOAD(x + r * padded + at));
        }
    for (; i < in; i += PAIRED) {
        __mmask32 mask = in - i < PAIRED ? (1u << (in - i)) - 1 : ~0u;
        __m512bh weight = (__m512bh)_mm512_maskz_loadu_epi16(mask, w + i);
        for (int r = 0; r < rows; r++) sum[r] = _mm512_dpbf16_ps(sum[r], weight, (__m512bh)LOAD(x + r * padded + i));
    }
    for (int r = 0; r < rows; r++) {
        for (int p = 1; p < parts; p++) sum[r] = add(sum[r], sum[p * rows + r]);
        sums[r] = sum_of(sum[r]);
    }
}

static void plain_or_bf16(const struct call *c, int64_t first, int64_t last) {
    if (!in_bf16(c)) {
        plain(c, first, last);
        return;
    }
    for (int64_t out = first; out < last; out++) {
        const uint16_t *w = (const uint16_t *)c->weight + out * c->in;
        for (int64_t row = 0; row < c->rows;) {
            int together = rows_at_once(c->rows - row);
            const uint16_t *x = (const uint16_t *)c->plain + row * c->padded;
            float sums[8];
            if (together == 8)
                bf16_row(sums, w, x, c->in, c->padded, 8);
            else if (together == 4)
                bf16_row(sums, w, x, c->in, c->padded, 4);
            else if (together == 2)
                bf16_row(sums, w, x, c->in, c->padded, 2);
            else
                bf16_row(sums, w, x, c->in, c->padded, 1);
            for (int r = 0; r < together; r++) finish(c, row + r, out, sums[r]);
            row += together;
        }
    }
}

const struct build outsize_bf16 = {widen_or_pad, plain_or_bf16, outsize_quantise_vnni, outsize_packed_vnni, dequantise, normalise};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct build outsize_bf16 = {0, 0, 0, 0, 0, 0};
#endif

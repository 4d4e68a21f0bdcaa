/* bf12 times activations in bf16 by dot products of pairs of bf16, summed in fp32; all else as in bf12_avx512.c. */
#include "bf12.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#endif

#include "bf12_unpack512.h"

#include "float512.h"

#define TILE 4

typedef uint16_t number;
typedef __m512bh value;

INLINE value load_values(const number *x) { return (value)_mm512_loadu_si512(x); }
INLINE vector fused(value w, value x, vector sum) { return _mm512_dpbf16_ps(sum, w, x); }
INLINE float float_at(const number *x, int64_t column) { return from_bf16(x[column]); }

INLINE void decode_group(const uint8_t *group, uint8_t base, value *w) {
    __m512i values[4];
    unpack_group(group, base, values);
    for (int i = 0; i < 4; i++) w[i] = (value)values[i];
}

#include "bf12_multiply.h"

static void order(const struct bf12_call *c, int64_t first, int64_t last) {
    const int64_t in = c->weight->in, padded = c->weight->groups * GROUP;
    if (c->type != BF16) {
        outsize_bf12_avx512.order(c, first, last);
        return;
    }
    for (int64_t row = first; row < last; row++) {
        number *to = (number *)c->ordered + row * padded;
        memcpy(to, (const number *)c->x + row * in, (size_t)in * sizeof(number));
        memset(to + in, 0, (size_t)(padded - in) * sizeof(number));
    }
}

static void multiply_bf16(const struct bf12_call *c, int64_t first, int64_t last) {
    if (c->type == BF16)
        multiply(c, first, last);
    else
        outsize_bf12_avx512.multiply(c, first, last);
}

static int64_t encode(const struct bf12 *to, const uint16_t *from, int64_t stride, int64_t first, int64_t last,
                      uint32_t *entries, int64_t count, int64_t most) {
    return outsize_bf12_avx512.encode(to, from, stride, first, last, entries, count, most);
}

static void expand(const struct bf12 *w, uint16_t *to, int64_t first, int64_t last) {
    outsize_bf12_avx512.expand(w, to, first, last);
}

const struct bf12_build outsize_bf12_bf16 = {encode, expand, order, multiply_bf16};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct bf12_build outsize_bf12_bf16 = {0, 0, 0, 0};
#endif

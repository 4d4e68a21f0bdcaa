/* AVX2 with FMA and F16C: most x86 machines since 2013. */
#include "kernels.h"

#ifdef __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define FOLDS 0
#define LAYOUT(kind) ((kind) == NIBBLES ? PLANES : WORDS) /* maddubs adds in 16 bits: enough for nibbles only */
#define AHEAD 2048 /* bytes; the hardware's own prefetching stops at every page */

#include "float256.h"

INLINE vector load_vector(const void *w, int type, int64_t i) {
    if (type == FP32) return _mm256_loadu_ps((const float *)w + i);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)w + i));
    if (type == FP16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

INLINE void store_floats(float *to, vector v) { _mm256_storeu_ps(to, v); }
INLINE vector without(vector a, vector b) { return _mm256_sub_ps(a, b); }
INLINE vector multiplied(vector a, vector b) { return _mm256_mul_ps(a, b); }
INLINE void prefetch(const void *p) { _mm_prefetch((const char *)((uintptr_t)p + AHEAD), _MM_HINT_T0); }

#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))

typedef struct {
    __m256i part[4]; /* nibbles as bytes, in the order of the planes of activations; or bytes as they are */
} weights;

INLINE weights unpack(const uint8_t *w, int sign, int kind, int block) {
    const __m256i mask = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)sign);
    weights to;
    prefetch(w);
    if (kind != NIBBLES) {
        if (block == 128) prefetch(w + 64);
        for (int i = 0; i < block / 32; i++) to.part[i] = _mm256_xor_si256(LOAD(w + 32 * i), flip);
    } else if (block == 32) {
        __m128i raw = _mm_loadu_si128((const __m128i *)w);
        __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(raw), _mm_srli_epi16(raw, 4), 1);
        to.part[0] = _mm256_and_si256(both, mask);
    } else {
        const int half = block / 64;
        for (int i = 0; i < half; i++) {
            __m256i raw = LOAD(w + 32 * i);
            to.part[i] = _mm256_and_si256(raw, mask);
            to.part[half + i] = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
        }
    }
    return to;
}

INLINE __m256i dot_nibbles(weights w, const int8_t *x, int block) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i high = _mm256_setzero_si256(), low = high;
    for (int i = 0; i < block / 32; i++) { /* at most 4 * 2 * 15 * 128 < 2**15 */
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(w.part[i], LOAD(x + 32 * i)));
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(w.part[i], LOAD(x + block + 32 * i)));
    }
    return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high, ones), 8), _mm256_madd_epi16(low, ones));
}

INLINE __m256i dot_bytes(weights w, const int8_t *x, int block) {
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < block / 32; i++) {
        __m256i wide = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(w.part[i]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(wide, LOAD(x + 64 * i)));
        wide = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(w.part[i], 1));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(wide, LOAD(x + 64 * i + 32)));
    }
    return sum;
}

INLINE vector add_block(vector sum, weights w, const int8_t *x, float scale, int kind, int block) {
    __m256i dot = kind == NIBBLES ? dot_nibbles(w, x, block) : dot_bytes(w, x, block);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scale), sum);
}

/* ---- floats: see floats.h ---- */

#define E2M1_ZERO 12
#define E4M3_UNIT 256.0f

typedef struct {
    vector half[2];
} powers;
typedef __m256i most_bytes;

INLINE weights look_up(const uint8_t *w) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    weights to = unpack(w, 0, NIBBLES, 128);
    for (int i = 0; i < 4; i++) to.part[i] = _mm256_shuffle_epi8(table, to.part[i]);
    return to;
}

INLINE powers powers_of(const uint8_t *exponents) {
    const __m256i least = _mm256_set1_epi32(1 << 22);
    powers to;
    for (int i = 0; i < 2; i++) {
        const __m256i bits = _mm256_set_m128i(_mm_set1_epi32(exponents[2 * i + 1] << 23), _mm_set1_epi32(exponents[2 * i] << 23));
        to.half[i] = _mm256_castsi256_ps(_mm256_max_epi32(bits, least));
    }
    return to;
}

INLINE vector add_e2m1(vector sum, weights w, const int8_t *x, float scale, powers each) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++) { /* at most 2 * 2 * 24 * 128 < 2**15 */
        const __m256i even = w.part[i], odd = w.part[2 + i];
        const int8_t *at = x + 32 * i;
        __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(even, LOAD(at)), _mm256_maddubs_epi16(odd, LOAD(at + 64)));
        __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(even, LOAD(at + 128)), _mm256_maddubs_epi16(odd, LOAD(at + 192)));
        __m256i dots = _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high, ones), 8), _mm256_madd_epi16(low, ones));
        dots = _mm256_add_epi32(dots, LOAD(at + 256));
        sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dots), _mm256_set1_ps(scale)), each.half[i], sum);
    }
    return sum;
}

/* Sign, exponent and mantissa go where fp16 has them. Its exponents are 8 larger. */
INLINE void load_e4m3(vector *to, const uint8_t *w) {
    __m256i bits = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w)), 7);
    bits = _mm256_and_si256(bits, _mm256_set1_epi16((short)0xbf80)); /* of two copies of the sign, one */
    to[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(bits));
    to[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1));
}

INLINE most_bytes no_bytes(void) { return _mm256_setzero_si256(); }

INLINE most_bytes most_of(most_bytes most, const uint8_t *w) {
    for (int i = 0; i < 128; i += 32) most = _mm256_max_epu8(most, _mm256_and_si256(LOAD(w + i), _mm256_set1_epi8(0x7f)));
    return most;
}

INLINE int is_nan(most_bytes most) { return _mm256_movemask_epi8(_mm256_cmpeq_epi8(most, _mm256_set1_epi8(0x7f))) != 0; }

#include "packed.h"
#include "norm.h"
#include "plain.h"

const struct build outsize_avx2 = {widen, plain, quantise, packed, dequantise, normalise, &outsize_bf12_avx2};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct build outsize_avx2 = {0, 0, 0, 0, 0, 0, 0};
#endif

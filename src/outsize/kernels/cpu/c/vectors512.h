/* Vectors of 512 bits, for the builds avx512, vnni and bf16. VNNI and BFLOAT say whether there are instructions
 * for dot products of bytes, and for bf16. */
#include <immintrin.h>

#define FOLDS VNNI
#define LAYOUT(kind) ((kind) == FOLDED_NIBBLES ? FOLDED : VNNI || (kind) == NIBBLES ? PLANES : WORDS)
#define AHEAD 1024 /* bytes; the hardware's own prefetching stops at every page */

#include "float512.h"

INLINE vector load_vector(const void *w, int type, int64_t i) {
    if (type == FP32) return _mm512_loadu_ps((const float *)w + i);
    __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)w + i));
    if (type == FP16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE void store_floats(float *to, vector v) { _mm512_storeu_ps(to, v); }
INLINE vector fused(vector a, vector b, vector sum) { return _mm512_fmadd_ps(a, b, sum); }
INLINE vector without(vector a, vector b) { return _mm512_sub_ps(a, b); }
INLINE vector multiplied(vector a, vector b) { return _mm512_mul_ps(a, b); }
INLINE void prefetch(const void *p) { _mm_prefetch((const char *)((uintptr_t)p + AHEAD), _MM_HINT_T0); }

#define LOAD(p) _mm512_loadu_si512(p)
#define LOAD_HALF(p) _mm256_loadu_si256((const __m256i *)(p))

typedef struct {
    __m512i first, second; /* the second is used by blocks of 128 inputs only */
} weights;

/* A vector of two halves, and a half of two quarters. */
INLINE __m512i join(__m256i first, __m256i second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

INLINE __m256i join_quarters(__m128i first, __m128i second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

/* Values as bytes, as the layout of activations wants them: nibbles as the even ones and then the odd ones, or, folded, as
 * they lie and then the even ones. A block of 32 fills half a vector, zeros the other. */
INLINE weights unpack(const uint8_t *w, int sign, int kind, int block) {
    const __m512i mask = _mm512_set1_epi8(15), flip = _mm512_set1_epi8((char)sign);
    const int folded = kind == FOLDED_NIBBLES;
    prefetch(w);
    if (kind == BYTES && block == 128) prefetch(w + 64);
    weights to = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    if (kind != BYTES && block == 128) {
        __m512i raw = LOAD(w), even = _mm512_and_si512(raw, mask);
        to.first = folded ? raw : even;
        to.second = folded ? even : _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
    } else if (kind != BYTES && block == 64) {
        __m256i raw = LOAD_HALF(w), half = _mm512_castsi512_si256(mask);
        to.first = folded ? join(raw, _mm256_and_si256(raw, half))
                          : _mm512_and_si512(join(raw, _mm256_srli_epi16(raw, 4)), mask);
    } else if (kind != BYTES) {
        __m128i raw = _mm_loadu_si128((const __m128i *)w), quarter = _mm512_castsi512_si128(mask);
        __m256i both = folded ? join_quarters(raw, _mm_and_si128(raw, quarter))
                              : _mm256_and_si256(join_quarters(raw, _mm_srli_epi16(raw, 4)), _mm512_castsi512_si256(mask));
        to.first = _mm512_zextsi256_si512(both);
    } else if (block == 32) {
        to.first = _mm512_zextsi256_si512(_mm256_xor_si256(LOAD_HALF(w), _mm512_castsi512_si256(flip)));
    } else {
        to.first = _mm512_xor_si512(LOAD(w), flip);
        if (block == 128) to.second = _mm512_xor_si512(LOAD(w + 64), flip);
    }
    return to;
}

/* Sums of 4 products of bytes, added to `sum`. */
INLINE __m512i dot_plane(__m512i sum, __m512i w, __m512i x) {
#if VNNI
    return _mm512_dpbusd_epi32(sum, w, x);
#else /* for nibbles only: pairs in 16 bits */
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
#endif
}

/* Parts of the sum of products of a block. */
INLINE __m512i dot(weights w, const int8_t *x, int kind, int block) {
    const __m512i zero = _mm512_setzero_si512();
    if (LAYOUT(kind) == WORDS) {
        __m512i sum = _mm512_madd_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(w.first)), LOAD(x));
        if (block >= 64) {
            __m512i wide = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(w.first, 1));
            sum = _mm512_add_epi32(sum, _mm512_madd_epi16(wide, LOAD(x + 64)));
        }
        if (block == 128) {
            __m512i wide = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(w.second));
            sum = _mm512_add_epi32(sum, _mm512_madd_epi16(wide, LOAD(x + 128)));
            wide = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(w.second, 1));
            sum = _mm512_add_epi32(sum, _mm512_madd_epi16(wide, LOAD(x + 192)));
        }
        return sum;
    }
    if (block == 32) {
        __m512i high = dot_plane(zero, w.first, _mm512_zextsi256_si512(LOAD_HALF(x)));
        return dot_plane(_mm512_slli_epi32(high, 8), w.first, _mm512_zextsi256_si512(LOAD_HALF(x + 32)));
    }
    __m512i sum = dot_plane(zero, w.first, LOAD(x));
    if (block == 128) sum = dot_plane(sum, w.second, LOAD(x + 64));
    sum = dot_plane(_mm512_slli_epi32(sum, 8), w.first, LOAD(x + block));
    return block == 128 ? dot_plane(sum, w.second, LOAD(x + 192)) : sum;
}

INLINE vector add_block(vector sum, weights w, const int8_t *x, float scale, int kind, int block) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot(w, x, kind, block)), _mm512_set1_ps(scale), sum);
}

/* ---- floats: see floats.h ---- */

#define E2M1_ZERO 12
#define E4M3_UNIT 256.0f

typedef vector powers;
typedef __m512i most_bytes;

INLINE weights look_up(const uint8_t *w) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i mask = _mm512_set1_epi8(15), raw = LOAD(w);
    prefetch(w);
    return (weights){_mm512_shuffle_epi8(table, _mm512_and_si512(raw, mask)),
                     _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask))};
}

INLINE powers powers_of(const uint8_t *exponents) {
    int32_t four;
    memcpy(&four, exponents, 4);
    const __m128i places = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512i bits = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_set1_epi32(four), places));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(bits, 23), _mm512_set1_epi32(1 << 22)));
}

INLINE vector add_e2m1(vector sum, weights w, const int8_t *x, float scale, powers each) {
    __m512i high = dot_plane(dot_plane(_mm512_setzero_si512(), w.first, LOAD(x)), w.second, LOAD(x + 64));
    __m512i dots = _mm512_add_epi32(_mm512_slli_epi32(high, 8), LOAD(x + 256));
    dots = dot_plane(dot_plane(dots, w.first, LOAD(x + 128)), w.second, LOAD(x + 192));
    return _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(scale)), each, sum);
}

/* Sign, exponent and mantissa go where fp16 has them. Its exponents are 8 larger. */
INLINE void load_e4m3(vector *to, const uint8_t *w) {
    __m512i bits = _mm512_slli_epi16(_mm512_cvtepi8_epi16(LOAD_HALF(w)), 7);
    bits = _mm512_and_si512(bits, _mm512_set1_epi16((short)0xbf80)); /* of two copies of the sign, one */
    to[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
    to[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
}

INLINE most_bytes no_bytes(void) { return _mm512_setzero_si512(); }

INLINE most_bytes most_of(most_bytes most, const uint8_t *w) {
    const __m512i rest = _mm512_set1_epi8(0x7f);
    return _mm512_max_epu8(_mm512_max_epu8(most, _mm512_and_si512(LOAD(w), rest)), _mm512_and_si512(LOAD(w + 64), rest));
}

INLINE int is_nan(most_bytes most) { return _mm512_cmpeq_epi8_mask(most, _mm512_set1_epi8(0x7f)) != 0; }

#define HAS_MULTIPLY_OUT

/* Sixteen numbers as bf16 or fp16, to nearest even; numbers only, no NaN. */
INLINE __m256i to_half(vector v, int type) {
    if (type == FP16) return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#if BFLOAT
    return (__m256i)_mm512_cvtneps_pbh(v);
#else
    __m512i bits = _mm512_castps_si512(v), last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
#endif
}

/* 32 nibbles, each one of sixteen numbers of 16 bits. */
INLINE void look_up_32(uint16_t *to, const uint8_t *values, __m256i numbers) {
    __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)values));
    pairs = _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), _mm256_set1_epi16(0x0f0f));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(pairs), join(numbers, numbers)));
}

/* 128 weights, all of them numbers. */
INLINE void multiply_e4m3(uint16_t *to, int type, const uint8_t *values, float scale) {
    for (int i = 0; i < 128; i += 32) {
        vector two[2];
        load_e4m3(two, values + i);
        for (int j = 0; j < 2; j++) {
            const vector number = _mm512_mul_ps(two[j], _mm512_set1_ps(E4M3_UNIT));
            _mm256_storeu_si256((__m256i *)(to + i + 16 * j), to_half(_mm512_mul_ps(number, _mm512_set1_ps(scale)), type));
        }
    }
}

/* 128 weights. Nibbles are looked up: there are sixteen of them. */
INLINE void multiply_out(uint16_t *to, int type, const uint8_t *values, int kind, int sign, float zero, float scale) {
    const vector zeros = _mm512_set1_ps(zero), scales = _mm512_set1_ps(scale);
    if (kind != NIBBLES) {
        for (int i = 0; i < 128; i += 16) {
            __m128i raw = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(values + i)), _mm_set1_epi8((char)sign));
            vector v = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(raw)), zeros);
            _mm256_storeu_si256((__m256i *)(to + i), to_half(_mm512_mul_ps(v, scales), type));
        }
        return;
    }
    const vector all = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i half = to_half(_mm512_mul_ps(_mm512_sub_ps(all, zeros), scales), type);
    for (int i = 0; i < 128; i += 32) look_up_32(to + i, values + i / 2, half);
}

/* 32 weights. */
INLINE void multiply_e2m1(uint16_t *to, int type, const uint8_t *values, float scale) {
    const vector all = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    look_up_32(to, values, to_half(_mm512_mul_ps(all, _mm512_set1_ps(scale)), type));
}

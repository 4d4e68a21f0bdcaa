/* bf12 in vectors of 256 bits. */
#include "bf12.h"
#include "bf12_high.h"

#ifdef __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "float256.h"

#define TILE 2

INLINE __m256i load(const void *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}

INLINE uint8_t smallest_byte(__m256i v) {
    __m128i b = _mm_min_epu8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    b = _mm_min_epu8(b, _mm_srli_epi16(b, 8));
    return (uint8_t)_mm_extract_epi16(_mm_minpos_epu16(_mm_and_si128(b, _mm_set1_epi16(255))), 0);
}

/* Bytes 32 * i .. 32 * i + 31 of a group come from the elements at starts[i] and 32 further. */
static const int starts[4] = {0, 16, 64, 80};

INLINE int encode_group(const uint16_t *from, uint8_t *group, uint8_t *base) {
    const __m256i low = _mm256_set1_epi16(255), within = _mm256_set1_epi8(REACH), none = _mm256_setzero_si256();
    __m256i lows[4], highs[4], codes[4], largest = none, furthest = none;
    for (int i = 0; i < 4; i++) {
        __m256i a = load(from + starts[i]), b = load(from + starts[i] + 32);
        lows[i] = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
        highs[i] = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        largest = _mm256_max_epu8(largest, _mm256_and_si256(highs[i], _mm256_set1_epi8(0x7f)));
    }
    *base = 255 - smallest_byte(_mm256_xor_si256(largest, _mm256_set1_epi8(-1)));
    for (int i = 0; i < 4; i++) {
        codes[i] = _mm256_sub_epi8(_mm256_set1_epi8((char)*base), _mm256_and_si256(highs[i], _mm256_set1_epi8(0x7f)));
        furthest = _mm256_max_epu8(furthest, codes[i]);
    }
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi8(furthest, within))) { /* all are below 128: signs do not matter */
        __m256i exceptions = none;
        for (int i = 0; i < 4; i++) {
            __m256i zero = _mm256_cmpeq_epi8(_mm256_and_si256(highs[i], _mm256_set1_epi8(0x7f)), none);
            __m256i beyond = _mm256_cmpgt_epi8(codes[i], _mm256_set1_epi8(REACH - 1));
            exceptions = _mm256_or_si256(exceptions, _mm256_andnot_si256(zero, beyond));
            codes[i] = _mm256_blendv_epi8(codes[i], within, zero);
        }
        if (!_mm256_testz_si256(exceptions, exceptions)) return 0;
    } else {
        *base |= WHOLE;
    }
    for (int i = 0; i < 4; i++) {
        __m256i sign = _mm256_and_si256(_mm256_srli_epi16(highs[i], 4), _mm256_set1_epi8(8));
        codes[i] = _mm256_or_si256(codes[i], sign);
        _mm256_storeu_si256((__m256i *)(group + 32 * i), lows[i]);
    }
    for (int i = 0; i < 2; i++) {
        __m256i both = _mm256_or_si256(codes[i], _mm256_slli_epi16(codes[i + 2], 4));
        _mm256_storeu_si256((__m256i *)(group + 128 + 32 * i), both);
    }
    return 1;
}

/* 16 elements from starts[i], and 16 that lie 32 further. */
INLINE void unpack_quarter(const uint8_t *group, uint8_t base, int i, __m256i *near, __m256i *far) {
    __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)high_bytes[base]));
    __m256i low = load(group + 32 * i), codes = load(group + 128 + 32 * (i & 1));
    codes = _mm256_and_si256(i < 2 ? codes : _mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
    __m256i high = _mm256_shuffle_epi8(table, codes);
    *near = _mm256_unpacklo_epi8(low, high);
    *far = _mm256_unpackhi_epi8(low, high);
}

INLINE void expand_group(const uint8_t *group, uint8_t base, uint16_t *to) {
    for (int i = 0; i < 4; i++) {
        __m256i near, far;
        unpack_quarter(group, base, i, &near, &far);
        _mm256_storeu_si256((__m256i *)(to + starts[i]), near);
        _mm256_storeu_si256((__m256i *)(to + starts[i] + 32), far);
    }
}

INLINE void decode_group(const uint8_t *group, uint8_t base, vector *w) {
    const __m256i odd = _mm256_set1_epi32((int)0xffff0000);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256i near, far;
        vector *to = w + (i >> 1) * 8 + (i & 1);
        unpack_quarter(group, base, i, &near, &far);
        to[0] = _mm256_castsi256_ps(_mm256_slli_epi32(near, 16));
        to[2] = _mm256_castsi256_ps(_mm256_and_si256(near, odd));
        to[4] = _mm256_castsi256_ps(_mm256_slli_epi32(far, 16));
        to[6] = _mm256_castsi256_ps(_mm256_and_si256(far, odd));
    }
}


#include "bf12_template.h"

const struct bf12_build outsize_bf12_avx2 = {encode, expand, order, multiply};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct bf12_build outsize_bf12_avx2 = {0, 0, 0, 0};
#endif

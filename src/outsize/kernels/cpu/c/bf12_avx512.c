/* bf12 in vectors of 512 bits; for the builds vnni and bf16 too. */
#include "bf12.h"

#ifdef __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

#include "bf12_unpack512.h"

#include "float512.h"

#define TILE 4

INLINE vector fused(vector a, vector b, vector sum) { return _mm512_fmadd_ps(a, b, sum); }

INLINE uint8_t smallest_byte(__m512i v) {
    __m256i a = _mm256_min_epu8(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    __m128i b = _mm_min_epu8(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_min_epu8(b, _mm_srli_epi16(b, 8));
    return (uint8_t)_mm_extract_epi16(_mm_minpos_epu16(_mm_and_si128(b, _mm_set1_epi16(255))), 0);
}

INLINE int encode_group(const uint16_t *from, uint8_t *group, uint8_t *base) {
    const __m512i low = _mm512_set1_epi16(255), pair = _mm512_set1_epi8(0x7f), sign = _mm512_set1_epi8(8);
    __m512i lows[2], highs[2], pairs[2], codes[2];
    for (int half = 0; half < 2; half++) {
        __m512i a = _mm512_loadu_si512(from + half * 64), b = _mm512_loadu_si512(from + half * 64 + 32);
        lows[half] = _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low));
        highs[half] = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        pairs[half] = _mm512_and_si512(highs[half], pair);
    }
    uint8_t largest = 255 - smallest_byte(_mm512_xor_si512(_mm512_max_epu8(pairs[0], pairs[1]), _mm512_set1_epi8(-1)));
    __m512i all = _mm512_set1_epi8((char)largest), within = _mm512_set1_epi8(REACH);
    for (int half = 0; half < 2; half++) codes[half] = _mm512_sub_epi8(all, pairs[half]);
    *base = largest | WHOLE;
    if (_mm512_cmpgt_epu8_mask(_mm512_max_epu8(codes[0], codes[1]), within)) {
        __mmask64 exceptions = 0;
        for (int half = 0; half < 2; half++) {
            __mmask64 zero = _mm512_testn_epi8_mask(pairs[half], pairs[half]);
            exceptions |= _mm512_mask_cmpge_epu8_mask(~zero, codes[half], within);
            codes[half] = _mm512_mask_mov_epi8(codes[half], zero, within);
        }
        if (exceptions) return 0;
        *base = largest;
    }
    for (int half = 0; half < 2; half++) { /* 0xea: (first & second) | third */
        codes[half] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(highs[half], 4), sign, codes[half], 0xea);
    }
    _mm512_storeu_si512(group, lows[0]);
    _mm512_storeu_si512(group + 64, lows[1]);
    _mm512_storeu_si512(group + 128, _mm512_or_si512(codes[0], _mm512_slli_epi16(codes[1], 4)));
    return 1;
}

INLINE void expand_group(const uint8_t *group, uint8_t base, uint16_t *to) {
    __m512i values[4];
    unpack_group(group, base, values);
    for (int i = 0; i < 4; i++) _mm512_storeu_si512(to + 32 * i, values[i]);
}

INLINE void decode_group(const uint8_t *group, uint8_t base, vector *w) {
    __m512i values[4];
    unpack_group(group, base, values);
    for (int i = 0; i < 4; i++) {
        w[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(values[i], 16));
        w[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(values[i], _mm512_set1_epi32((int)0xffff0000)));
    }
}


#include "bf12_template.h"

const struct bf12_build outsize_bf12_avx512 = {encode, expand, order, multiply};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct bf12_build outsize_bf12_avx512 = {0, 0, 0, 0};
#endif

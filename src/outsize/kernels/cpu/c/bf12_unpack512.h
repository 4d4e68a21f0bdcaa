/* A group of bf12 in vectors of 512 bits. */
#ifndef OUTSIZE_BF12_UNPACK512_H
#define OUTSIZE_BF12_UNPACK512_H

#include "bf12.h"
#include "bf12_high.h"

/* 128 bfloat16, in order. */
INLINE void unpack_group(const uint8_t *group, uint8_t base, __m512i values[4]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i table = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)high_bytes[base]));
    __m512i codes = _mm512_loadu_si512(group + 128), low = _mm512_loadu_si512(group);
    __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, nibble));
    values[0] = _mm512_unpacklo_epi8(low, high);
    values[1] = _mm512_unpackhi_epi8(low, high);
    low = _mm512_loadu_si512(group + 64);
    high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble));
    values[2] = _mm512_unpacklo_epi8(low, high);
    values[3] = _mm512_unpackhi_epi8(low, high);
}

#endif

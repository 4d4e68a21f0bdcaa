/* bf12: bfloat16 weights in 12 bits and a little, without loss. In memory only; never on disk.
 *
 * A bfloat16 is a low byte (the lowest bit of the exponent, and the mantissa), kept as it is, and a high one: the
 * sign, and the exponent but for its lowest bit, here called a pair, because it stands for two exponents. Few pairs
 * occur near each other, so the high byte becomes 4 bits. A row is cut into groups of 128 elements, the last one
 * padded with zeros. A group is 192 bytes, three cache lines:
 *
 *   128 bytes   the low bytes
 *    64 bytes   codes of 4 bits: the low nibbles belong to elements 0..63, the high ones to 64..127
 *
 * and has one byte in an array of its own: `base`, a pair, and bit 7. Of a code, bit 3 is the sign and the rest, k,
 * says which pair: base - k. Where bit 7 is clear, k = 7 is the pair 0 instead: zeros, denormals and the smallest
 * normal numbers. A group whose pairs all lie in base - 7 .. base, base the largest, has bit 7 set. In any other,
 * what has no code is an exception: +0 in the group, and an entry (column << 16 | bits) in a list, sorted by row and
 * column; row r has the entries starts[r] .. starts[r + 1]. Such a group's base is the one, no larger than the
 * largest pair, that leaves the fewest exceptions; the largest of those.
 *
 * Within each 64 elements, byte 16 * l + p holds element 8 * l + p where p < 8, and 32 + 8 * l + p - 8 otherwise:
 * the order in which 128-bit lanes of two vectors of 16-bit values are packed to bytes, and unpacked again.
 */
#ifndef OUTSIZE_BF12_H
#define OUTSIZE_BF12_H

#include "kernels.h"

enum { GROUP = 128, GROUP_BYTES = 192, REACH = 7, WHOLE = 0x80 };

struct bf12 {
    uint8_t *body;     /* [out, groups, 192] */
    uint8_t *bases;    /* [out, groups] */
    uint32_t *starts;  /* [out + 1] */
    uint32_t *entries; /* [starts[out]] */
    int64_t out, in, groups;
};

/* y [rows, out] = x [rows, in] @ weight.T + bias, summed in fp32. */
struct bf12_call {
    const struct bf12 *weight;
    const void *x;
    const void *bias; /* of x's type, or null */
    void *y;          /* of x's type */
    void *ordered;    /* scratch: x as the build's `order` leaves it [rows, groups * 128], 4 bytes each at most */
    int64_t rows, y_stride; /* stride: numbers from a row of y to the next */
    int type;
};

/* The functions of one build. Each takes a range of rows, so that threads share a call. */
struct bf12_build {
    /* Rows first .. last of `from`, the stride in elements. Entries begin at entries[count]; returns how many there are
     * then, and -1 where they are more than `most`: there is room for that many and GROUP. */
    int64_t (*encode)(const struct bf12 *, const uint16_t *from, int64_t stride, int64_t first, int64_t last,
                      uint32_t *entries, int64_t count, int64_t most);
    /* Rows first .. last, from `to` on. */
    void (*expand)(const struct bf12 *, uint16_t *to, int64_t first, int64_t last);
    void (*order)(const struct bf12_call *, int64_t first_row, int64_t last_row);
    void (*multiply)(const struct bf12_call *, int64_t first_out, int64_t last_out);
};

/* Where element i of a group has its byte, within its 64. */
INLINE int place_of(int i) { return (i & 24) * 2 + ((i & 32) >> 2) + (i & 7); }

/* The pair that k stands for. */
INLINE unsigned pair_of(unsigned base, unsigned k) {
    unsigned pair = base & 0x7f;
    return (k == REACH && !(base & WHOLE)) || k > pair ? 0 : pair - k;
}

INLINE uint16_t element_of(const uint8_t *group, uint8_t base, int i) {
    unsigned code = (group[GROUP + place_of(i)] >> (i >> 6) * 4) & 15;
    return (uint16_t)((code & 8) << 12 | pair_of(base, code & 7) << 8 | group[(i & 64) + place_of(i)]);
}

INLINE void prefetch_group(const uint8_t *group) {
    for (int line = 0; line < 3; line++) __builtin_prefetch((const void *)((uintptr_t)group + 64 * line));
}

#endif

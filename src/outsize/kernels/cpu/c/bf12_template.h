/* Encoding, expanding, and multiplying in float; a template. The build gives
 *
 *   WIDTH, vector, zero_vector, fused(w, x, sum), add, sum_of, load_floats    vectors of floats, as for plain.h
 *   TILE                                   weight rows that are multiplied together where x has several rows
 *   encode_group(from, group, base)        a group of 128 bfloat16 in order; 0, and no more, where it has exceptions
 *   expand_group(group, base, to)          the reverse
 *   decode_group(group, base, w)           as vectors of floats: of each 32 elements the even ones, then the odd ones
 */
#include "bf12.h"

enum { AHEAD_ALONE = 24 }; /* as AHEAD in bf12_multiply.h, where groups are read one after the other */

/* ---- encode ---- */

/* The base of a group that is not whole. */
static uint8_t best_base(const uint16_t *elements) {
    int counts[128] = {0}, largest = 0, best = 0, most = -1;
    for (int i = 0; i < GROUP; i++) {
        int pair = (elements[i] >> 8) & 0x7f;
        counts[pair]++;
        if (pair > largest) largest = pair;
    }
    for (int base = largest; base >= 0; base--) {
        int within = 0;
        for (int pair = base; pair > 0 && pair > base - REACH; pair--) within += counts[pair];
        if (within > most) {
            most = within;
            best = base;
        }
    }
    return (uint8_t)best;
}

/* A group that is not whole. Returns how many entries were written. */
static int encode_apart(const uint16_t *elements, int64_t column, uint8_t *group, uint8_t *base, uint32_t *entries) {
    int found = 0;
    *base = best_base(elements);
    memset(group, 0, GROUP_BYTES);
    for (int i = 0; i < GROUP; i++) {
        int pair = (elements[i] >> 8) & 0x7f;
        unsigned low = elements[i] & 255, sign = (elements[i] >> 12) & 8, k = REACH;
        if (pair > 0 && pair <= *base && *base - pair < REACH) {
            k = (unsigned)(*base - pair);
        } else if (pair > 0) {
            low = sign = 0;
            entries[found++] = (uint32_t)(column + i) << 16 | elements[i];
        }
        uint8_t *codes = group + GROUP + place_of(i);
        group[(i & 64) + place_of(i)] = (uint8_t)low;
        *codes = (uint8_t)(*codes | (sign | k) << (i >> 6) * 4);
    }
    return found;
}

static int64_t encode(const struct bf12 *to, const uint16_t *from, int64_t stride, int64_t first, int64_t last,
                      uint32_t *entries, int64_t count, int64_t most) {
    uint16_t tail[GROUP];
    for (int64_t row = first; row < last; row++) {
        uint8_t *group = to->body + row * to->groups * GROUP_BYTES, *base = to->bases + row * to->groups;
        to->starts[row] = (uint32_t)count;
        for (int64_t column = 0; column < to->in; column += GROUP, group += GROUP_BYTES, base++) {
            const uint16_t *elements = from + row * stride + column;
            if (to->in - column < GROUP) {
                memset(tail, 0, sizeof tail);
                memcpy(tail, elements, (size_t)(to->in - column) * 2);
                elements = tail;
            }
            if (encode_group(elements, group, base)) continue;
            count += encode_apart(elements, column, group, base, entries + count);
            if (count > most) return -1;
        }
    }
    return count;
}

/* ---- expand ---- */

static void expand(const struct bf12 *w, uint16_t *to, int64_t first, int64_t last) {
    uint16_t tail[GROUP];
    for (int64_t row = first; row < last; row++, to += w->in) {
        const uint8_t *group = w->body + row * w->groups * GROUP_BYTES, *base = w->bases + row * w->groups;
        for (int64_t column = 0; column < w->in; column += GROUP, group += GROUP_BYTES, base++) {
            prefetch_group(group + AHEAD_ALONE * GROUP_BYTES);
            if (w->in - column >= GROUP) {
                expand_group(group, *base, to + column);
            } else {
                expand_group(group, *base, tail);
                memcpy(to + column, tail, (size_t)(w->in - column) * 2);
            }
        }
        for (uint32_t i = w->starts[row]; i < w->starts[row + 1]; i++)
            to[w->entries[i] >> 16] = (uint16_t)w->entries[i];
    }
}

/* ---- multiply ---- */

/* Where column i of x lies in the order of decode_group. */
INLINE int64_t position_of(int64_t i) { return (i & ~(int64_t)31) | (i & 1) << 4 | (i & 31) >> 1; }

INLINE void order_row(const void *x, int type, int64_t start, int64_t in, float *to) {
    for (int64_t i = 0; i + 32 <= in; i += 32)
        for (int k = 0; k < 16; k++) {
            to[i + k] = load_one(x, type, start + i + 2 * k);
            to[i + 16 + k] = load_one(x, type, start + i + 2 * k + 1);
        }
    for (int64_t i = in & ~(int64_t)31; i < in; i++) to[position_of(i)] = load_one(x, type, start + i);
}

static void order(const struct bf12_call *c, int64_t first, int64_t last) {
    const int64_t in = c->weight->in, padded = c->weight->groups * GROUP, whole = in & ~(int64_t)31;
    for (int64_t row = first; row < last; row++) {
        float *to = (float *)c->ordered + row * padded;
        memset(to + whole, 0, (size_t)(padded - whole) * sizeof(float));
        if (c->type == BF16)
            order_row(c->x, BF16, row * in, in, to);
        else if (c->type == FP16)
            order_row(c->x, FP16, row * in, in, to);
        else
            order_row(c->x, FP32, row * in, in, to);
    }
}

typedef float number;
typedef vector value;

INLINE value load_values(const number *x) { return load_floats(x); }
INLINE float float_at(const number *x, int64_t column) { return x[position_of(column)]; }

#include "bf12_multiply.h"

/* Encoding, expanding and multiplying; a template. The build gives
 *
 *   WIDTH, vector, zero_vector, fused(w, x, sum), add, sum_of, load_floats    vectors of floats, as for plain.h
 *   TILE                                   weight rows that are multiplied together where x has several rows
 *   encode_group(from, group, base)        a group of 128 bfloat16 in order; 0, and no more, where it has exceptions
 *   expand_group(group, base, to)          the reverse
 *   decode_group(group, base, w)           as vectors of floats: of each 32 elements the even ones, then the odd ones
 */
#include "bf12.h"

enum {
    VECTORS = GROUP / WIDTH,
    AHEAD = 24, /* groups that are fetched before they are needed: the hardware's own prefetching stops at every page */
    /* Groups whose sums are kept apart: 64 numbers in each part, so that long rows err no more than short ones. With
     * several rows of x, also the width of a tile. */
    PANEL = WIDTH / 2,
};

INLINE void prefetch_group(const uint8_t *group) {
    for (int line = 0; line < 3; line++) __builtin_prefetch((const void *)((uintptr_t)group + 64 * line));
}

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
            prefetch_group(group + AHEAD * GROUP_BYTES);
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
        float *to = c->ordered + row * padded;
        memset(to + whole, 0, (size_t)(padded - whole) * sizeof(float));
        if (c->type == BF16)
            order_row(c->x, BF16, row * in, in, to);
        else if (c->type == FP16)
            order_row(c->x, FP16, row * in, in, to);
        else
            order_row(c->x, FP32, row * in, in, to);
    }
}

/* One output: what the groups alone gave, the exceptions, the bias, and one rounding. An infinite activation times the
 * zero that stands for an exception is NaN: then the row is summed again, one by one. */
static void finish_out(const struct bf12_call *c, int64_t row, int64_t out, float sum) {
    const struct bf12 *w = c->weight;
    const float *x = c->ordered + row * w->groups * GROUP;
    uint32_t entry = w->starts[out], last = w->starts[out + 1];
    for (uint32_t i = entry; i < last; i++)
        sum += from_bf16((uint16_t)w->entries[i]) * x[position_of(w->entries[i] >> 16)];
    if (sum != sum && entry < last) {
        sum = 0;
        for (int64_t i = 0; i < w->in; i++) {
            const int64_t group = out * w->groups + i / GROUP;
            uint16_t bits = element_of(w->body + group * GROUP_BYTES, w->bases[group], (int)(i % GROUP));
            if (entry < last && w->entries[entry] >> 16 == i) bits = (uint16_t)w->entries[entry++];
            sum += from_bf16(bits) * x[position_of(i)];
        }
    }
    if (c->bias) sum += load_one(c->bias, c->type, out);
    store_one(c->y, c->type, row * w->out + out, sum);
}

static void multiply_one(const struct bf12_call *c, int64_t first, int64_t last) {
    const struct bf12 *w = c->weight;
    for (int64_t out = first; out < last; out++) {
        const uint8_t *group = w->body + out * w->groups * GROUP_BYTES, *base = w->bases + out * w->groups;
        vector total = zero_vector();
        for (int64_t panel = 0; panel < w->groups; panel += PANEL) {
            const int64_t end = w->groups - panel < PANEL ? w->groups : panel + PANEL;
            vector values[VECTORS], sums[4];
            for (int i = 0; i < 4; i++) sums[i] = zero_vector();
            for (int64_t g = panel; g < end; g++, group += GROUP_BYTES) {
                prefetch_group(group + AHEAD * GROUP_BYTES);
                decode_group(group, base[g], values);
#pragma GCC unroll 32
                for (int v = 0; v < VECTORS; v++)
                    sums[v % 4] = fused(values[v], load_floats(c->ordered + g * GROUP + v * WIDTH), sums[v % 4]);
            }
            total = add(total, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
        }
        finish_out(c, 0, out, sum_of(total));
    }
}

/* sums[tile row][row] += weights . x, for TILE rows of weights and `rows` rows of x. */
INLINE void multiply_tile(const vector *weights, const float *x, int64_t padded, int64_t vectors, vector *sums,
                          int rows) {
    vector own[TILE][4];
#pragma GCC unroll 16
    for (int i = 0; i < TILE * rows; i++) own[i / rows][i % rows] = zero_vector();
    for (int64_t v = 0; v < vectors; v++) {
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++) {
            vector value = load_floats(x + row * padded + v * WIDTH);
#pragma GCC unroll 4
            for (int t = 0; t < TILE; t++) own[t][row] = fused(weights[t * PANEL * VECTORS + v], value, own[t][row]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE * rows; i++) {
        vector *sum = &sums[i / rows * MOST_ROWS + i % rows];
        *sum = add(*sum, own[i / rows][i % rows]);
    }
}

static void multiply_several(const struct bf12_call *c, int64_t first, int64_t last) {
    const struct bf12 *w = c->weight;
    const int64_t padded = w->groups * GROUP;
    vector weights[TILE * PANEL * VECTORS], sums[TILE * MOST_ROWS];
    for (int64_t out = first; out < last; out += TILE) {
        const int64_t tile = last - out < TILE ? last - out : TILE;
        for (int i = 0; i < TILE * MOST_ROWS; i++) sums[i] = zero_vector();
        for (int64_t panel = 0; panel < w->groups; panel += PANEL) {
            const int64_t width = w->groups - panel < PANEL ? w->groups - panel : PANEL;
            for (int64_t t = 0; t < TILE; t++) { /* a tile that is cut short has its last row several times */
                const int64_t at = (out + (t < tile ? t : tile - 1)) * w->groups + panel;
                for (int64_t g = 0; g < width; g++) {
                    const uint8_t *group = w->body + (at + g) * GROUP_BYTES;
                    prefetch_group(group + TILE * w->groups * GROUP_BYTES); /* the same columns of the next tile */
                    decode_group(group, w->bases[at + g], weights + (t * PANEL + g) * VECTORS);
                }
            }
            for (int64_t row = 0; row < c->rows; row += 4) {
                const float *x = c->ordered + row * padded + panel * GROUP;
                if (c->rows - row == 1)
                    multiply_tile(weights, x, padded, width * VECTORS, sums + row, 1);
                else if (c->rows - row == 2)
                    multiply_tile(weights, x, padded, width * VECTORS, sums + row, 2);
                else if (c->rows - row == 3)
                    multiply_tile(weights, x, padded, width * VECTORS, sums + row, 3);
                else
                    multiply_tile(weights, x, padded, width * VECTORS, sums + row, 4);
            }
        }
        for (int64_t t = 0; t < tile; t++)
            for (int64_t row = 0; row < c->rows; row++)
                finish_out(c, row, out + t, sum_of(sums[t * MOST_ROWS + row]));
    }
}

static void multiply(const struct bf12_call *c, int64_t first, int64_t last) {
    if (c->rows == 1)
        multiply_one(c, first, last);
    else
        multiply_several(c, first, last);
}

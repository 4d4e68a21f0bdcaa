/* int4 and int8 weights times a few rows of activations; a template: each build includes it after its vectors.
 *
 * An activation x is taken as scale * q with q of 16 bits (12 where FOLDED), one scale per block of inputs and row. Stored
 * values v are not negative, and a weight is (v - zero) * scale. So y is the sum over blocks of scale of weights * scale of
 * activations * (sum(v * q) - zero * sum(q)): the sums of products are exact integers, in as many parts as a vector has
 * lanes; they are added up in fp32 block by block, and the zeros' share, one number per block, is taken off at the end. A
 * row of activations gives the same bits whatever rows are beside it.
 *
 * The build gives FOLDS, whether it knows FOLDED_NIBBLES; LAYOUT(kind), how it wants activations; unpack(values, sign, kind, block), where bytes are taken as
 * `byte ^ sign`; and add_block(sum, weights, activations, scale, kind, block). A part of a sum stays below 2**31:
 * 128 * 255 * 32639.
 */

#include "dequantise.h"

enum { LARGEST = 32639, LARGEST_FOLDED = 1919 }; /* 127 * 256 + 127; LARGEST / 17 */

INLINE void into_planes(int8_t *to, const int16_t *q, int block) {
    for (int i = 0; i < block; i++) to[i] = (int8_t)((q[i] + 128) >> 8);
    for (int i = 0; i < block; i++) to[block + i] = (int8_t)(uint8_t)q[i]; /* what 256 * high leaves */
}

/* Quantise one block of one row; returns the sum of what x became, for the zero points. */
INLINE float quantise_block(int8_t *to, float *scale, const float *x, int layout, int nibbles, int block) {
    const float largest = layout == FOLDED ? LARGEST_FOLDED : LARGEST;
    uint32_t most = 0;
    for (int i = 0; i < block; i++) {
        uint32_t u = bits_of(x[i]) & 0x7fffffffu;
        most = most > u ? most : u;
    }
    if (most >= 0x7f800000u || most < 0x0d800000u) { /* not finite: all that follows is NaN; below 2**-100: zero */
        memset(to, 0, 2 * (size_t)block);
        *scale = most >= 0x7f800000u ? float_of(0x7fc00000u) : 0.0f;
        return *scale;
    }
    const float inverse = largest / float_of(most), step = float_of(most) / largest;
    int16_t q[128], ordered[128];
    int32_t total = 0;
    for (int i = 0; i < block; i++) {
        float rounded = x[i] * inverse + 12582912.0f; /* 1.5 * 2**23: its last bit is 1, so this rounds to nearest even */
        int32_t one = (int32_t)bits_of(rounded) - 0x4b400000;
        q[i] = (int16_t)one;
        total += one;
    }
    *scale = layout == FOLDED ? step / 16 : step;
    if (layout == WORDS) {
        memcpy(to, q, 2 * (size_t)block);
    } else if (!nibbles) {
        into_planes(to, q, block);
    } else {
        for (int i = 0; i < block / 2; i++) {
            const int even = q[2 * i], odd = q[2 * i + 1];
            ordered[i] = (int16_t)(layout == FOLDED ? odd : even);
            ordered[block / 2 + i] = (int16_t)(layout == FOLDED ? 16 * even - odd : odd);
        }
        into_planes(to, ordered, block);
    }
    return (float)total * step;
}

/* NIBBLES, FOLDED_NIBBLES or BYTES. */
INLINE int kind_of(const struct call *c) {
    if (c->packed->kind != NIBBLES) return BYTES;
    return FOLDS && c->x_type == BF16 ? FOLDED_NIBBLES : NIBBLES;
}

static void quantise(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    const int kind = kind_of(c);
    for (int64_t row = 0, group = 0; row < c->rows; group++) {
        int together = packed_rows_at_once(c->rows - row, w->block);
        const struct rows *to = &c->quantised[group];
        for (int64_t b = first; b < last; b++) {
            for (int r = 0; r < together; r++) {
                float x[128];
                int64_t start = b * w->block, left = c->in - start, at = b * together + r;
                if (left < w->block) memset(x, 0, sizeof x);
                load_some(x, c->x, c->x_type, (row + r) * c->in + start, left < w->block ? left : w->block);
                to->sums[r * to->blocks + b] =
                    quantise_block(to->values + at * 2 * w->block, &to->scales[at], x, LAYOUT(kind),
                                   kind != BYTES, w->block);
            }
        }
        row += together;
    }
}

enum { STRETCH = 256 }; /* blocks whose scales are made ready at a time */

/* Blocks `first` .. `last` of one row of weights times `rows` rows of activations, added to `sum`; what the zeros add is
 * added to `zeros`. */
INLINE void packed_stretch(vector *sum, vector *zeros, const struct packed *w, const struct rows *x, int64_t out,
                           int64_t first, int64_t last, int rows, int kind, int block) {
    const int64_t size = kind == BYTES ? block : block / 2; /* bytes of weights in a block */
    const uint8_t *values = w->values + out * w->stride;
    const int sign = w->kind == SIGNED_BYTES ? 128 : 0, count = (int)(last - first);
    float scale[STRETCH + WIDTH], zero[STRETCH], both[STRETCH * 8];
    scales_and_zeros(scale, zero, w, out, first, count);
    for (int i = 0; i < count; i++)
        for (int r = 0; r < rows; r++) both[i * rows + r] = scale[i] * x->scales[(first + i) * rows + r];
    int64_t whole = (w->stride - first * size) / size; /* blocks that lie within the row */
    const int direct = whole < count ? (int)whole : count;
    const int8_t *activations = x->values + first * rows * 2 * block;
#pragma GCC unroll 4
    for (int i = 0; i < direct; i++) {
        weights block_of_row = unpack(values + (first + i) * size, sign, kind, block);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            sum[r] = add_block(sum[r], block_of_row, activations + (i * rows + r) * 2 * block, both[i * rows + r], kind,
                               block);
    }
    if (direct < count) { /* what lies behind the row may not be there */
        uint8_t rest[128] = {0};
        memcpy(rest, values + (first + direct) * size, (size_t)(w->stride - (first + direct) * size));
        weights block_of_row = unpack(rest, sign, kind, block);
        for (int r = 0; r < rows; r++)
            sum[r] = add_block(sum[r], block_of_row, activations + (direct * rows + r) * 2 * block,
                               both[direct * rows + r], kind, block);
    }
    for (int i = 0; i < count; i++) scale[i] *= zero[i];
    for (int i = count; i < count + WIDTH; i++) scale[i] = 0.0f;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < count; i += WIDTH)
            zeros[r] = fused(load_floats(scale + i), load_floats(x->sums + r * x->blocks + first + i), zeros[r]);
}

/* One row of weights times `rows` rows of activations; `rows`, `kind` (see kind_of) and `block` are constants where
 * this is inlined. */
INLINE void packed_row(float *sums, const struct packed *w, const struct rows *x, int64_t out, int rows, int kind,
                       int block) {
    const int64_t blocks = (w->in + block - 1) / block;
    vector sum[8], zeros[8];
    for (int r = 0; r < rows; r++) sum[r] = zeros[r] = zero_vector();
    for (int64_t b = 0; b < blocks; b += STRETCH)
        packed_stretch(sum, zeros, w, x, out, b, blocks - b < STRETCH ? blocks : b + STRETCH, rows, kind, block);
    for (int r = 0; r < rows; r++) sums[r] = sum_of(sum[r]) - sum_of(zeros[r]);
}

enum { nibbles = NIBBLES, bytes = BYTES, folded = FOLDED_NIBBLES }; /* in names of functions */

/* A function for each number of rows, kind and block, so that their loops are unrolled. */
typedef void row_function(float *sums, const struct packed *w, const struct rows *x, int64_t out);

#define ROW(count, kind, block)                                                             \
    static __attribute__((noinline)) void row_##count##_##kind##_##block(                   \
        float *sums, const struct packed *w, const struct rows *x, int64_t out) {           \
        packed_row(sums, w, x, out, count, kind, block);                                    \
    }
#define ROWS(kind) \
    ROW(1, kind, 128) ROW(2, kind, 128) ROW(4, kind, 128) ROW(8, kind, 128) \
    ROW(1, kind, 64) ROW(4, kind, 64) ROW(1, kind, 32) ROW(4, kind, 32)
#define NAMES(kind)                                                                                    \
    {{row_1_##kind##_128, row_2_##kind##_128, row_4_##kind##_128, row_8_##kind##_128},                \
     {row_1_##kind##_64, 0, row_4_##kind##_64, 0},                                                     \
     {row_1_##kind##_32, 0, row_4_##kind##_32, 0}}

ROWS(nibbles)
ROWS(bytes)
#if FOLDS
ROWS(folded)
#endif

static row_function *const row_functions[][3][4] = {
    [NIBBLES] = NAMES(nibbles),
    [BYTES] = NAMES(bytes),
#if FOLDS
    [FOLDED_NIBBLES] = NAMES(folded),
#endif
};

static void packed(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    row_function *const *functions = row_functions[kind_of(c)][w->block == 128 ? 0 : w->block == 64 ? 1 : 2];
    for (int64_t out = first; out < last; out++)
        for (int64_t row = 0, group = 0; row < c->rows; group++) {
            int together = packed_rows_at_once(c->rows - row, w->block);
            float sums[8];
            functions[together == 8 ? 3 : together / 2](sums, w, &c->quantised[group], out);
            for (int r = 0; r < together; r++) finish(c, row + r, out, sums[r]);
            row += together;
        }
}

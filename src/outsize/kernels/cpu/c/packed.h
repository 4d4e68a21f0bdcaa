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

/* What E2M1_ZERO adds to the sum of each 8 products. */
INLINE void take_zeros(int8_t *to, const int16_t *q) {
    int32_t zeros[16] = {0};
    for (int i = 0; i < 128; i++) zeros[i / 8] -= E2M1_ZERO * q[i];
    memcpy(to, zeros, sizeof zeros);
}

/* Quantise one block of one row, for weights of that kind; returns the sum of what x became, for the zero points. */
INLINE float quantise_block(int8_t *to, float *scale, const float *x, int kind, int block) {
    const int layout = LAYOUT(kind == E2M1 ? NIBBLES : kind);
    const float largest = layout == FOLDED ? LARGEST_FOLDED : LARGEST;
    uint32_t most = 0;
    for (int i = 0; i < block; i++) {
        uint32_t u = bits_of(x[i]) & 0x7fffffffu;
        most = most > u ? most : u;
    }
    if (most >= 0x7f800000u || most < 0x0d800000u) { /* not finite: all that follows is NaN; below 2**-100: zero */
        memset(to, 0, prepared_bytes(kind, block));
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
    *scale = layout == FOLDED ? step / 16 : kind == E2M1 ? step / 2 : step; /* which beside E2M1 are doubled */
    if (kind == E2M1) take_zeros(to + 256, q);
    if (layout == WORDS) {
        memcpy(to, q, 2 * (size_t)block);
    } else if (kind == BYTES) {
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

/* NIBBLES, FOLDED_NIBBLES, BYTES, E2M1 or E4M3. */
INLINE int kind_of(const struct call *c) {
    const int kind = prepared_as(c->packed->kind);
    return FOLDS && kind == NIBBLES && c->x_type == BF16 ? FOLDED_NIBBLES : kind;
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
                int8_t *own = to->values + (size_t)at * prepared_bytes(kind, w->block);
                if (left < w->block) memset(x, 0, sizeof x);
                load_some(x, c->x, c->x_type, (row + r) * c->in + start, left < w->block ? left : w->block);
                if (kind == E4M3)
                    memcpy(own, x, sizeof x);
                else
                    to->sums[r * to->blocks + b] =
                        quantise_block(own, &to->scales[r * to->blocks + b], x, kind, w->block);
            }
        }
        row += together;
    }
}

enum { STRETCH = 64 }; /* blocks whose scales are made ready at a time */

/* Blocks `first` .. `last` of rows out, out + apart, ... of the weights times `rows` rows of activations, added to `sum`;
 * what the zeros add is added to `zeros`. Both [streams, rows]. */
INLINE void packed_stretch(vector *sum, vector *zeros, const struct packed *w, const struct rows *x, int64_t out,
                           int64_t apart, int64_t first, int64_t last, int streams, int rows, int kind, int block) {
    const int64_t size = kind == BYTES ? block : block / 2; /* bytes of weights in a block */
    const int sign = w->kind == SIGNED_BYTES ? 128 : 0, count = (int)(last - first);
    float both[MOST_SUMS][STRETCH]; /* scale of weights * scale of activations */
    float scale[STRETCH], zero[STRETCH];
    for (int i = count; i < STRETCH && i % WIDTH; i++) scale[i] = zero[i] = 0.0f;
    for (int s = 0; s < streams; s++) {
        scales_of(scale, w, out + s * apart, first, count);
        if (s == 0 || w->zero_kind != NO_ZEROS) zeros_of(zero, w, out + s * apart, first, count);
        for (int r = 0; r < rows; r++) {
            const float *of_x = x->scales + r * x->blocks + first, *sums_of_x = x->sums + r * x->blocks + first;
            vector total = zeros[s * rows + r];
            for (int i = 0; i < count; i += WIDTH) {
                vector own = load_floats(scale + i);
                store_floats(&both[s * rows + r][i], multiplied(own, load_floats(of_x + i)));
                total = fused(multiplied(own, load_floats(zero + i)), load_floats(sums_of_x + i), total);
            }
            zeros[s * rows + r] = total;
        }
    }
    const uint8_t *values = w->values + out * w->stride + first * size;
    const int64_t left = w->stride - first * size, step = apart * w->stride;
    const int direct = left / size < count ? (int)(left / size) : count; /* blocks that lie within the row */
    const int8_t *activations = x->values + first * rows * 2 * block;
    for (int i = 0; i < direct; i++)
#pragma GCC unroll 16
        for (int s = 0; s < streams; s++) {
            weights block_of_row = unpack(values + s * step + i * size, sign, kind, block);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                sum[s * rows + r] = add_block(sum[s * rows + r], block_of_row, activations + (i * rows + r) * 2 * block,
                                              both[s * rows + r][i], kind, block);
        }
    if (direct == count) return;
    for (int s = 0; s < streams; s++) { /* what lies behind the row may not be there */
        uint8_t rest[128] = {0};
        memcpy(rest, values + s * step + direct * size, (size_t)(left - direct * size));
        weights block_of_row = unpack(rest, sign, kind, block);
        for (int r = 0; r < rows; r++)
            sum[s * rows + r] = add_block(sum[s * rows + r], block_of_row, activations + (direct * rows + r) * 2 * block,
                                          both[s * rows + r][direct], kind, block);
    }
}

/* Rows out, out + apart, ... of the weights times `rows` rows of activations: sums [streams, rows]. `streams`, `rows`,
 * `kind` (see kind_of) and `block` are constants where this is inlined. */
INLINE void packed_rows(float *sums, const struct packed *w, const struct rows *x, int64_t out, int64_t apart,
                        int streams, int rows, int kind, int block) {
    const int64_t blocks = (w->in + block - 1) / block;
    vector sum[MOST_SUMS], zeros[MOST_SUMS];
    for (int i = 0; i < streams * rows; i++) sum[i] = zeros[i] = zero_vector();
    for (int64_t b = 0; b < blocks; b += STRETCH)
        packed_stretch(sum, zeros, w, x, out, apart, b, blocks - b < STRETCH ? blocks : b + STRETCH, streams, rows, kind,
                       block);
    for (int i = 0; i < streams * rows; i++) sums[i] = sum_of(without(sum[i], zeros[i]));
}

enum { nibbles = NIBBLES, bytes = BYTES, folded = FOLDED_NIBBLES }; /* in names of functions */

/* A function for each number of streams and rows, kind and block, so that their loops are unrolled. */
typedef void row_function(float *sums, const struct packed *w, const struct rows *x, int64_t out, int64_t apart);

#define ROW(streams, count, kind, block)                                                              \
    static __attribute__((noinline)) void row_##streams##_##count##_##kind##_##block(                 \
        float *sums, const struct packed *w, const struct rows *x, int64_t out, int64_t apart) {      \
        packed_rows(sums, w, x, out, apart, streams, count, kind, block);                             \
    }
#define ROWS(kind)                                                                                    \
    ROW(8, 1, kind, 128) ROW(4, 2, kind, 128) ROW(4, 4, kind, 128) ROW(2, 8, kind, 128)               \
    ROW(1, 1, kind, 128) ROW(1, 2, kind, 128) ROW(1, 4, kind, 128) ROW(1, 8, kind, 128)               \
    ROW(1, 1, kind, 64) ROW(1, 4, kind, 64) ROW(1, 1, kind, 32) ROW(1, 4, kind, 32)
#define NAMES(kind)                                                                                                  \
    {{{row_8_1_##kind##_128, row_4_2_##kind##_128, row_4_4_##kind##_128, row_2_8_##kind##_128},                      \
      {row_1_1_##kind##_128, row_1_2_##kind##_128, row_1_4_##kind##_128, row_1_8_##kind##_128}},                     \
     {{0}, {row_1_1_##kind##_64, 0, row_1_4_##kind##_64, 0}},                                                        \
     {{0}, {row_1_1_##kind##_32, 0, row_1_4_##kind##_32, 0}}}

#include "floats.h"

ROWS(nibbles)
ROWS(bytes)
#if FOLDS
ROWS(folded)
#endif

static row_function *const row_functions[][3][2][4] = {
    [NIBBLES] = NAMES(nibbles),
    [BYTES] = NAMES(bytes),
#if FOLDS
    [FOLDED_NIBBLES] = NAMES(folded),
#endif
    [E2M1] = FLOAT_NAMES(e2m1),
    [E4M3] = FLOAT_NAMES(e4m3),
};

/* Outputs out, out + apart, ..., `outputs` of them: 1 or STREAMS. */
static void packed_outputs(const struct call *c, int64_t out, int64_t apart, int outputs) {
    const struct packed *w = c->packed;
    row_function *const(*functions)[4] = row_functions[kind_of(c)][w->block == 128 ? 0 : w->block == 64 ? 1 : 2];
    for (int64_t row = 0, group = 0; row < c->rows; group++) {
        const int together = packed_rows_at_once(c->rows - row, w->block), index = together == 8 ? 3 : together / 2;
        const int streams = outputs > 1 && functions[0][index] ? streams_of(together) : 1;
        for (int first = 0; first < outputs; first += streams) {
            float sums[MOST_SUMS];
            functions[streams == 1][index](sums, w, &c->quantised[group], out + first * apart, apart);
            for (int s = 0; s < streams; s++)
                for (int r = 0; r < together; r++)
                    finish(c, row + r, out + (first + s) * apart, sums[s * together + r]);
        }
        row += together;
    }
}

static void packed(const struct call *c, int64_t first, int64_t last) {
    const int64_t apart = (last - first) / STREAMS;
    for (int64_t out = first; out < first + apart; out++) packed_outputs(c, out, apart, STREAMS);
    for (int64_t out = first + STREAMS * apart; out < last; out++) packed_outputs(c, out, 0, 1);
}

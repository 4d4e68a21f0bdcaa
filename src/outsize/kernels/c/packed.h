/* int4 and int8 weights times a few rows of activations; a template: each build includes it after its vectors.
 *
 * An activation x is taken as scale * q with q of 16 bits, one scale per block of inputs and row. The sum of a block,
 * D = sum((w - zero) * q), is exact in 32 bits: 128 * 255 * 32639 < 2**31. Then y = sum over the blocks, in order, of
 * float(D) * (weight scale * activation scale), rounded after every step and never fused. So all builds, and any number
 * of rows, give the same bits.
 *
 * The build gives PLANES(kind): whether activations are stored as two planes of bytes (q = 256 * high + low; of nibbles'
 * inputs the even ones first, then the odd ones) or as words in their order; and
 * dots(sums, values, activations, sign, rows, kind, block): the sums without their zero points for LANES / rows blocks;
 * bytes are taken as `byte ^ sign`.
 */

enum { LARGEST = 32639 }; /* 127 * 256 + 127 */

/* Quantise one block of one row. Sums and scale are kept for the zero points. */
INLINE void quantise_block(int8_t *to, int32_t *sum, float *scale, const float *x, int planes, int nibbles, int block) {
    uint32_t most = 0;
    for (int i = 0; i < block; i++) {
        uint32_t u = bits_of(x[i]) & 0x7fffffffu;
        most = most > u ? most : u;
    }
    if (most >= 0x7f800000u || most < 0x0d800000u) { /* not finite: all that follows is NaN; below 2**-100: zero */
        memset(to, 0, 2 * (size_t)block);
        *sum = 0;
        *scale = most >= 0x7f800000u ? float_of(0x7fc00000u) : 0.0f;
        return;
    }
    float inverse = (float)LARGEST / float_of(most);
    int16_t q[128];
    int32_t total = 0;
    for (int i = 0; i < block; i++) {
        float rounded = x[i] * inverse + 12582912.0f; /* 1.5 * 2**23: its last bit is 1, so this rounds to nearest even */
        int32_t one = (int32_t)bits_of(rounded) - 0x4b400000;
        q[i] = (int16_t)one;
        total += one;
    }
    *sum = total;
    *scale = float_of(most) / (float)LARGEST;
    if (!planes) {
        memcpy(to, q, 2 * (size_t)block);
        return;
    }
    for (int i = 0; i < block; i++) {
        int at = nibbles ? (i & 1) * (block / 2) + i / 2 : i;
        int high = (q[i] + 128) >> 8;
        to[at] = (int8_t)high;
        to[block + at] = (int8_t)(q[i] - 256 * high);
    }
}

static void quantise(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    for (int64_t row = 0, group = 0; row < c->rows; group++) {
        int together = packed_rows_at_once(c->rows - row, w->block);
        const struct rows *to = &c->quantised[group];
        for (int64_t b = first; b < last; b++) {
            for (int r = 0; r < together; r++) {
                float x[128] = {0};
                int64_t start = b * w->block, left = c->in - start, at = b * together + r;
                if (left > 0) load_some(x, c->x, c->x_type, (row + r) * c->in + start, left < w->block ? left : w->block);
                quantise_block(to->values + at * 2 * w->block, &to->sums[at], &to->scales[at], x, PLANES(w->kind),
                               w->kind == NIBBLES, w->block);
            }
        }
        row += together;
    }
}

/* Scales of `count` blocks from block `b` of output `out`; `most` is a constant that count hardly ever differs from. */
INLINE void scales_of(float *to, const struct packed *w, int64_t out, int64_t b, int count, int most) {
    int64_t start = out * w->groups;
    if (w->group != w->block)
        for (int i = 0; i < count; i++) to[i] = load_one(w->scale, w->scale_type, start + (b + i) * w->block / w->group);
    else if (count == most)
        load_some(to, w->scale, w->scale_type, start + b, most);
    else
        load_some(to, w->scale, w->scale_type, start + b, count);
}

/* Stored zero points, as the stored values: unsigned. */
INLINE void zeros_of(int32_t *to, const struct packed *w, int64_t out, int64_t b, int count) {
    const int bits = w->kind == NIBBLES ? 4 : 8, per = 32 / bits;
    if (w->zero_kind == NO_ZEROS) {
        for (int i = 0; i < LANES; i++) to[i] = 1 << (bits - 1);
        return;
    }
    for (int i = 0; i < count; i++) {
        int64_t group = (b + i) * w->block / w->group;
        if (w->zero_kind == BYTE_ZEROS) {
            to[i] = ((const int8_t *)w->zero)[out * w->groups + group] + 128;
        } else {
            uint32_t word = ((const uint32_t *)w->zero)[out / per * w->groups + group];
            to[i] = (int32_t)(word >> (out % per * bits) & ((1u << bits) - 1));
        }
    }
}

/* One row of weights times `rows` rows of activations; `rows`, `kind` (NIBBLES or
 * BYTES) and `block` are constants where this is inlined. */
INLINE void packed_row(float *sums, const struct packed *w, const struct rows *x, int64_t out, int rows, int kind,
                       int block) {
    const int per = LANES / rows;                               /* blocks at once */
    const int64_t size = kind == NIBBLES ? block / 2 : block;   /* bytes of weights in a block */
    const int64_t blocks = (w->in + block - 1) / block;
    const uint8_t *values = w->values + out * w->stride;
    const int sign = w->kind == SIGNED_BYTES ? 128 : 0;
    uint8_t tail[LANES * 128];
    int32_t dot[LANES], zero[LANES] = {0};
    float scale[LANES] = {0}, term[LANES];
    for (int r = 0; r < rows; r++) sums[r] = 0.0f;
    for (int64_t b = 0; b < blocks; b += per) {
        const int8_t *activations = x->values + b * rows * 2 * block;
        int count = blocks - b < per ? (int)(blocks - b) : per;
        const uint8_t *at = values + b * size;
        int64_t left = w->stride - b * size;
        if (left < per * size) { /* what lies behind the row may not be there */
            memcpy(tail, at, (size_t)left);
            memset(tail + left, 0, (size_t)(per * size - left));
            at = tail;
        }
        dots(dot, at, activations, sign, rows, kind, block);
        scales_of(scale, w, out, b, count, per);
        zeros_of(zero, w, out, b, count);
        for (int i = 0; i < per; i++)
            for (int r = 0; r < rows; r++) {
                int lane = i * rows + r;
                int32_t sum = dot[lane] - zero[i] * x->sums[b * rows + lane];
                term[lane] = (float)sum * (scale[i] * x->scales[b * rows + lane]);
            }
        for (int i = 0; i < count; i++)
            for (int r = 0; r < rows; r++) sums[r] += term[i * rows + r];
    }
}

enum { nibbles = NIBBLES, bytes = BYTES }; /* NIBBLES and BYTES in functions' names */

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

static row_function *const row_functions[2][3][4] = {NAMES(nibbles), NAMES(bytes)};

static void packed(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    row_function *const *functions = row_functions[w->kind != NIBBLES][w->block == 128 ? 0 : w->block == 64 ? 1 : 2];
    for (int64_t out = first; out < last; out++)
        for (int64_t row = 0, group = 0; row < c->rows; group++) {
            int together = packed_rows_at_once(c->rows - row, w->block);
            float sums[8];
            functions[together == 8 ? 3 : together / 2](sums, w, &c->quantised[group], out);
            for (int r = 0; r < together; r++) finish(c, row + r, out, sums[r]);
            row += together;
        }
}

/* The weight multiplied out, each product rounded once: what many rows are multiplied with. */
static void dequantise(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    const int sign = w->kind == SIGNED_BYTES ? 128 : 0;
    for (int64_t row = first; row < last; row++)
        for (int64_t b = 0, start = 0; start < w->in; b++, start += w->block) {
            int64_t count = w->in - start < w->block ? w->in - start : w->block, to = row * w->in + start;
            int64_t out = c->first + row;
            float scale, x[128];
            int32_t zero[LANES];
            scales_of(&scale, w, out, b, 1, 1);
            zeros_of(zero, w, out, b, 1);
            const uint8_t *values = w->values + out * w->stride + (w->kind == NIBBLES ? start / 2 : start);
            if (w->kind == NIBBLES)
                for (int64_t i = 0; i < (count + 1) / 2; i++) {
                    x[2 * i] = (float)((values[i] & 15) - zero[0]) * scale;
                    x[2 * i + 1] = (float)((values[i] >> 4) - zero[0]) * scale;
                }
            else
                for (int64_t i = 0; i < count; i++) x[i] = (float)((values[i] ^ sign) - zero[0]) * scale;
            if (c->x_type == FP32)
                memcpy((float *)c->y + to, x, (size_t)count * sizeof(float));
            else if (c->x_type == BF16)
                for (int64_t i = 0; i < count; i++) ((uint16_t *)c->y)[to + i] = to_bf16(x[i]);
            else
                for (int64_t i = 0; i < count; i++) ((uint16_t *)c->y)[to + i] = to_fp16(x[i]);
        }
}

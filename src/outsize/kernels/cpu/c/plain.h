/* bf16, fp16 and fp32 weights times a few rows of activations; a template, as packed.h.
 *
 * The build gives WIDTH, `vector` and load_vector(weights, type, i), load_floats, fused(w, x, sum), add, sum_of. Sums are
 * kept in fp32, in at least WIDTH parts.
 */

static void widen(const struct call *c, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        float *to = c->plain + row * c->padded;
        load_some(to, c->x, c->x_type, row * c->in, c->in);
        memset(to + c->in, 0, (size_t)(c->padded - c->in) * sizeof(float));
    }
}

INLINE const void *offset(const void *p, int type, int64_t i) {
    return (const char *)p + i * (type == FP32 ? 4 : 2);
}

/* Rows of weights, `apart` bytes from each other, times `rows` rows of x: sums [streams, rows]. */
INLINE void plain_outputs(float *sums, const void *weights, int64_t apart, const float *x, int64_t in, int64_t padded,
                          int streams, int rows, int type) {
    const int parts = rows < 4 ? 2 : 1;
    vector sum[2][MOST_SUMS];
    for (int i = 0; i < streams * rows; i++) sum[0][i] = sum[1][i] = zero_vector();
    int64_t i = 0;
    for (; i + WIDTH * parts <= in; i += WIDTH * parts)
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++) {
            const void *w = (const char *)weights + s * apart;
#pragma GCC unroll 2
            for (int p = 0; p < parts; p++) {
                vector weight = load_vector(w, type, i + p * WIDTH);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
                    sum[p][s * rows + r] =
                        fused(weight, load_floats(x + r * padded + i + p * WIDTH), sum[p][s * rows + r]);
            }
            prefetch(offset(w, type, i));
            if (type == FP32 && parts * WIDTH > 16) prefetch(offset(w, type, i + 16));
        }
    for (; i < in; i += WIDTH)
        for (int s = 0; s < streams; s++) {
            float tail[WIDTH] = {0};
            load_some(tail, (const char *)weights + s * apart, type, i, in - i < WIDTH ? in - i : WIDTH);
            for (int r = 0; r < rows; r++)
                sum[0][s * rows + r] = fused(load_floats(tail), load_floats(x + r * padded + i), sum[0][s * rows + r]);
        }
    for (int j = 0; j < streams * rows; j++) sums[j] = sum_of(add(sum[0][j], sum[1][j]));
}

/* `outputs` rows of weights, 1 or STREAMS, times all rows of x. */
INLINE void plain_rows(const struct call *c, int64_t out, int64_t apart, int outputs, int type) {
    const void *w = offset(c->weight, type, out * c->in);
    const int64_t step = type == FP32 ? 4 * apart * c->in : 2 * apart * c->in;
    for (int64_t row = 0; row < c->rows;) {
        const int together = rows_at_once(c->rows - row), streams = outputs == 1 ? 1 : streams_of(together);
        const float *x = c->plain + row * c->padded;
        for (int first = 0; first < outputs; first += streams) {
            const void *from = (const char *)w + first * step;
            float sums[MOST_SUMS];
#define OUTPUTS(count, kept)                                                            \
    if (together == count && outputs > 1)                                               \
        plain_outputs(sums, from, step, x, c->in, c->padded, kept, count, type);        \
    else if (together == count)                                                         \
        plain_outputs(sums, from, 0, x, c->in, c->padded, 1, count, type);
            OUTPUTS(1, 8) OUTPUTS(2, 4) OUTPUTS(4, 4) OUTPUTS(8, 2)
#undef OUTPUTS
            for (int s = 0; s < streams; s++)
                for (int r = 0; r < together; r++)
                    finish(c, row + r, out + (first + s) * apart, sums[s * together + r]);
        }
        row += together;
    }
}

INLINE void plain_of(const struct call *c, int64_t first, int64_t last, int type) {
    const int64_t apart = (last - first) / STREAMS;
    for (int64_t out = first; out < first + apart; out++) plain_rows(c, out, apart, STREAMS, type);
    for (int64_t out = first + STREAMS * apart; out < last; out++) plain_rows(c, out, 0, 1, type);
}

static void plain(const struct call *c, int64_t first, int64_t last) {
    if (c->weight_type == BF16)
        plain_of(c, first, last, BF16);
    else if (c->weight_type == FP16)
        plain_of(c, first, last, FP16);
    else
        plain_of(c, first, last, FP32);
}

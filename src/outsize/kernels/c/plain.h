/* bf16, fp16 and fp32 weights times a few rows of activations; a template, as packed.h.
 *
 * The build gives WIDTH, `vector` and load_vector(weights, type, i), load_floats, fused(w, x, sum), add, sum_of. Sums are
 * kept in fp32, in at least WIDTH * 4 / rows parts.
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

/* One row of weights times `rows` rows of x. */
INLINE void plain_row(float *sums, const void *w, const float *x, int64_t in, int64_t padded, int rows, int type) {
    const int parts = rows >= 4 ? 1 : 4 / rows;
    vector sum[8];
    for (int i = 0; i < rows * parts; i++) sum[i] = zero_vector();
    int64_t i = 0;
    for (; i + WIDTH * parts <= in; i += WIDTH * parts) {
#pragma GCC unroll 4
        for (int p = 0; p < parts; p++) {
            vector weight = load_vector(w, type, i + p * WIDTH);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                sum[p * rows + r] = fused(weight, load_floats(x + r * padded + i + p * WIDTH), sum[p * rows + r]);
        }
        prefetch(offset(w, type, i));
        if (type == FP32 && parts * WIDTH > 16) prefetch(offset(w, type, i + 16));
        if (type == FP32 && parts * WIDTH > 32) prefetch(offset(w, type, i + 32));
        if (type == FP32 && parts * WIDTH > 48) prefetch(offset(w, type, i + 48));
        if (type != FP32 && parts * WIDTH > 32) prefetch(offset(w, type, i + 32));
    }
    for (; i < in; i += WIDTH) {
        float tail[WIDTH] = {0};
        load_some(tail, w, type, i, in - i < WIDTH ? in - i : WIDTH);
        for (int r = 0; r < rows; r++) sum[r] = fused(load_floats(tail), load_floats(x + r * padded + i), sum[r]);
    }
    for (int r = 0; r < rows; r++) {
        for (int p = 1; p < parts; p++) sum[r] = add(sum[r], sum[p * rows + r]);
        sums[r] = sum_of(sum[r]);
    }
}

INLINE void plain_rows(const struct call *c, int64_t first, int64_t last, int type) {
    for (int64_t out = first; out < last; out++) {
        const void *w = offset(c->weight, type, out * c->in);
        for (int64_t row = 0; row < c->rows;) {
            int together = rows_at_once(c->rows - row);
            const float *x = c->plain + row * c->padded;
            float sums[8];
            if (together == 8)
                plain_row(sums, w, x, c->in, c->padded, 8, type);
            else if (together == 4)
                plain_row(sums, w, x, c->in, c->padded, 4, type);
            else if (together == 2)
                plain_row(sums, w, x, c->in, c->padded, 2, type);
            else
                plain_row(sums, w, x, c->in, c->padded, 1, type);
            for (int r = 0; r < together; r++) finish(c, row + r, out, sums[r]);
            row += together;
        }
    }
}

static void plain(const struct call *c, int64_t first, int64_t last) {
    if (c->weight_type == BF16)
        plain_rows(c, first, last, BF16);
    else if (c->weight_type == FP16)
        plain_rows(c, first, last, FP16);
    else
        plain_rows(c, first, last, FP32);
}

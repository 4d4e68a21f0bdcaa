/* mxfp4 and fp8 weights times a few rows of activations; a template, as packed.h, which includes it. Blocks are of 128
 * inputs.
 *
 * E2M1: twice a weight is one of -12, ..., 12, times a power of two for every 32 inputs. Activations are quantised as for
 * nibbles; sums of products are exact integers. The build gives look_up(values), the doubled numbers as the layout of
 * activations wants them, increased by E2M1_ZERO where they must not be negative; powers_of(exponents), 2 ** (e - 127) for
 * each lane's part of the block; and add_e2m1(sum, weights, activations, scale, powers). A lane holds 8 neighbours, or parts
 * of 8, so behind the activations there is what E2M1_ZERO adds to the sum of each 8: see quantise.
 *
 * E4M3: activations are floats. The build gives load_e4m3(two vectors, values), the numbers at 1 / E4M3_UNIT of their size,
 * and most_of(most, values) and is_nan(most), whether there was one among those that count as none.
 */

/* As packed_rows. */
INLINE void e2m1_rows(float *sums, const struct packed *w, const struct rows *x, int64_t out, int64_t apart, int streams,
                      int rows) {
    const int64_t blocks = (w->in + 127) / 128, step = apart * w->stride;
    vector sum[MOST_SUMS];
    for (int i = 0; i < streams * rows; i++) sum[i] = zero_vector();
    const uint8_t *values = w->values + out * w->stride, *exponents = (const uint8_t *)w->scale + out * w->groups;
    for (int64_t b = 0; b < blocks; b++) {
        const int8_t *activations = x->values + b * rows * PREPARED_E2M1;
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++) {
            uint8_t rest[64], few[4];
            const uint8_t *at = within(rest, values + s * step + b * 64, w->stride - b * 64, 64);
            const powers each = powers_of(within(few, exponents + s * apart * w->groups + b * 4, w->groups - b * 4, 4));
            weights block = look_up(at);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                sum[s * rows + r] = add_e2m1(sum[s * rows + r], block, activations + r * PREPARED_E2M1,
                                             x->scales[r * x->blocks + b], each);
        }
    }
    for (int i = 0; i < streams * rows; i++) sums[i] = sum_of(sum[i]);
}

/* As packed_rows. */
INLINE void e4m3_rows(float *sums, const struct packed *w, const struct rows *x, int64_t out, int64_t apart, int streams,
                      int rows) {
    const int64_t blocks = (w->in + 127) / 128, step = apart * w->stride;
    vector sum[MOST_SUMS];
    most_bytes most[STREAMS];
    int64_t scales[STREAMS]; /* where those of a stream's row begin */
    for (int i = 0; i < streams * rows; i++) sum[i] = zero_vector();
    for (int s = 0; s < streams; s++) {
        most[s] = no_bytes();
        scales[s] = (out + s * apart) / w->group * w->groups;
    }
    const uint8_t *values = w->values + out * w->stride;
    for (int64_t b = 0; b < blocks; b++) {
        const float *activations = (const float *)(const void *)x->values + b * rows * 128;
        const int64_t place = b * 128 / w->group;
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++) {
            uint8_t rest[128];
            const uint8_t *at = within(rest, values + s * step + b * 128, w->stride - b * 128, 128);
            const vector scale = broadcast(load_one(w->scale, w->scale_type, scales[s] + place) * E4M3_UNIT);
            vector of_block[8];
            for (int r = 0; r < rows; r++) of_block[r] = zero_vector();
            prefetch(at);
            prefetch(at + 64);
            most[s] = most_of(most[s], at);
            for (int i = 0; i < 128; i += 2 * WIDTH) {
                vector weight[2];
                load_e4m3(weight, at + i);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    const float *from = activations + r * 128 + i;
                    of_block[r] = fused(weight[0], load_floats(from), of_block[r]);
                    of_block[r] = fused(weight[1], load_floats(from + WIDTH), of_block[r]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) sum[s * rows + r] = fused(of_block[r], scale, sum[s * rows + r]);
        }
    }
    for (int s = 0; s < streams; s++)
        for (int r = 0; r < rows; r++)
            sums[s * rows + r] = is_nan(most[s]) ? float_of(0x7fc00000u) : sum_of(sum[s * rows + r]);
}

#define FLOAT_ROW(streams, count, kind)                                                        \
    static __attribute__((noinline)) void row_##streams##_##count##_##kind(                    \
        float *sums, const struct packed *w, const struct rows *x, int64_t out, int64_t apart) { \
        kind##_rows(sums, w, x, out, apart, streams, count);                                   \
    }
#define FLOAT_ROWS(kind)                                                             \
    FLOAT_ROW(8, 1, kind) FLOAT_ROW(4, 2, kind) FLOAT_ROW(4, 4, kind) FLOAT_ROW(2, 8, kind) \
    FLOAT_ROW(1, 1, kind) FLOAT_ROW(1, 2, kind) FLOAT_ROW(1, 4, kind) FLOAT_ROW(1, 8, kind)
#define FLOAT_NAMES(kind)                                               \
    {{{row_8_1_##kind, row_4_2_##kind, row_4_4_##kind, row_2_8_##kind}, \
      {row_1_1_##kind, row_1_2_##kind, row_1_4_##kind, row_1_8_##kind}}}

FLOAT_ROWS(e2m1)
FLOAT_ROWS(e4m3)

/* Root mean square normalisation of one row: transformers writes it as eight operations, each of which costs more than
 * its work where one token is computed between weights that have just swept the caches. Compiled in every build. */

enum { SUMS = 16 };

#define NORM(name, number, FROM, TO)                                                                     \
    INLINE void name(const struct norm *n, int64_t row) {                                                \
        const number *restrict x = (const number *)n->x + row * n->width, *restrict weight = n->weight;                   \
        number *restrict y = (number *)n->y + row * n->width;                                                    \
        float sums[SUMS] = {0}, sum = 0;                                                         \
        int64_t i = 0;                                                                                   \
        for (; i + SUMS <= n->width; i += SUMS)                                          \
            for (int lane = 0; lane < SUMS; lane++) sums[lane] += FROM(x[i + lane]) * FROM(x[i + lane]); \
        for (; i < n->width; i++) sum += FROM(x[i]) * FROM(x[i]);                                        \
        for (int lane = 0; lane < SUMS; lane++) sum += sums[lane];                               \
        const float scale = 1.0f / __builtin_sqrtf(sum / (float)n->width + n->eps);                          \
        if (n->kind == ROUNDED)                                                                          \
            for (i = 0; i < n->width; i++) y[i] = TO(FROM(TO(FROM(x[i]) * scale)) * FROM(weight[i]));    \
        else if (n->kind == EXACT)                                                                       \
            for (i = 0; i < n->width; i++) y[i] = TO(FROM(x[i]) * scale * FROM(weight[i]));              \
        else                                                                                             \
            for (i = 0; i < n->width; i++) y[i] = TO(FROM(x[i]) * scale * (1.0f + FROM(weight[i])));     \
    }

#define SAME(v) (v)

NORM(norm_bf16, uint16_t, from_bf16, to_bf16)
NORM(norm_fp16, uint16_t, from_fp16, to_fp16)
NORM(norm_fp32, float, SAME, SAME)

static void normalise(const struct norm *n, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        if (n->type == BF16)
            norm_bf16(n, row);
        else if (n->type == FP16)
            norm_fp16(n, row);
        else
            norm_fp32(n, row);
}

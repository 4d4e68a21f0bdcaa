/* Portable C: what any machine runs. */
#include "kernels.h"

#define PLANES(kind) 0
#define WIDTH 16

typedef struct {
    float lane[WIDTH];
} vector;

INLINE vector zero_vector(void) { return (vector){{0}}; }

INLINE vector load_vector(const void *w, int type, int64_t i) {
    vector v;
    load_some(v.lane, w, type, i, WIDTH);
    return v;
}

INLINE vector load_floats(const float *x) {
    vector v;
    memcpy(v.lane, x, sizeof v);
    return v;
}

INLINE vector fused(vector a, vector b, vector sum) {
    for (int i = 0; i < WIDTH; i++) sum.lane[i] += a.lane[i] * b.lane[i];
    return sum;
}

INLINE vector add(vector a, vector b) {
    for (int i = 0; i < WIDTH; i++) a.lane[i] += b.lane[i];
    return a;
}

INLINE float sum_of(vector v) {
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v.lane[i] += v.lane[i + half];
    return v.lane[0];
}

INLINE void prefetch(const void *p) { (void)p; }

INLINE void dots(int32_t *sums, const uint8_t *w, const int8_t *x, int sign, int rows, int kind, int block) {
    for (int b = 0; b < LANES / rows; b++) {
        int16_t values[128];
        if (kind == NIBBLES)
            for (int i = 0; i < block / 2; i++) {
                values[2 * i] = w[b * block / 2 + i] & 15;
                values[2 * i + 1] = w[b * block / 2 + i] >> 4;
            }
        else
            for (int i = 0; i < block; i++) values[i] = w[b * block + i] ^ sign;
        for (int r = 0; r < rows; r++) {
            int16_t q[128];
            int32_t sum = 0;
            memcpy(q, x + (b * rows + r) * 2 * block, 2 * (size_t)block);
            for (int i = 0; i < block; i++) sum += values[i] * q[i];
            sums[b * rows + r] = sum;
        }
    }
}

#include "packed.h"
#include "plain.h"

const struct build outsize_baseline = {widen, plain, quantise, packed, dequantise};

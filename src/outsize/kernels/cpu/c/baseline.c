/* Portable C: what any machine runs. */
#include "kernels.h"

#define FOLDS 0
#define LAYOUT(kind) WORDS
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

INLINE void store_floats(float *to, vector v) { memcpy(to, v.lane, sizeof v); }

INLINE vector fused(vector a, vector b, vector sum) {
    for (int i = 0; i < WIDTH; i++) sum.lane[i] += a.lane[i] * b.lane[i];
    return sum;
}

INLINE vector add(vector a, vector b) {
    for (int i = 0; i < WIDTH; i++) a.lane[i] += b.lane[i];
    return a;
}

INLINE vector without(vector a, vector b) {
    for (int i = 0; i < WIDTH; i++) a.lane[i] -= b.lane[i];
    return a;
}

INLINE vector multiplied(vector a, vector b) {
    for (int i = 0; i < WIDTH; i++) a.lane[i] *= b.lane[i];
    return a;
}

INLINE float sum_of(vector v) {
    for (int half = WIDTH / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v.lane[i] += v.lane[i + half];
    return v.lane[0];
}

INLINE void prefetch(const void *p) { (void)p; }

typedef struct {
    int16_t value[128];
} weights;

INLINE weights unpack(const uint8_t *w, int sign, int kind, int block) {
    weights to;
    if (kind == NIBBLES)
        for (int i = 0; i < block / 2; i++) {
            to.value[2 * i] = w[i] & 15;
            to.value[2 * i + 1] = w[i] >> 4;
        }
    else
        for (int i = 0; i < block; i++) to.value[i] = w[i] ^ sign;
    return to;
}

INLINE vector add_block(vector sum, weights w, const int8_t *x, float scale, int kind, int block) {
    int16_t q[128];
    int32_t dot = 0;
    (void)kind;
    memcpy(q, x, 2 * (size_t)block);
    for (int i = 0; i < block; i++) dot += w.value[i] * q[i];
    sum.lane[0] += (float)dot * scale;
    return sum;
}

#include "packed.h"
#include "norm.h"
#include "plain.h"

const struct build outsize_baseline = {widen, plain, quantise, packed, dequantise, normalise, &outsize_bf12_baseline};

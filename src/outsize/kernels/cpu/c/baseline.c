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

/* ---- floats: see floats.h ---- */

#define E2M1_ZERO 0
#define E4M3_UNIT 1.0f

typedef struct {
    float each[4];
} powers;
typedef int most_bytes;

INLINE vector broadcast(float f) {
    vector v;
    for (int i = 0; i < WIDTH; i++) v.lane[i] = f;
    return v;
}

INLINE weights look_up(const uint8_t *w) {
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    weights to = unpack(w, 0, NIBBLES, 128);
    for (int i = 0; i < 128; i++) to.value[i] = doubled[to.value[i]];
    return to;
}

INLINE powers powers_of(const uint8_t *exponents) {
    powers to;
    for (int i = 0; i < 4; i++) to.each[i] = from_e8m0(exponents[i]);
    return to;
}

INLINE vector add_e2m1(vector sum, weights w, const int8_t *x, float scale, powers each) {
    int16_t q[128];
    memcpy(q, x, sizeof q);
    for (int part = 0; part < 4; part++) {
        int32_t dot = 0;
        for (int i = 32 * part; i < 32 * (part + 1); i++) dot += w.value[i] * q[i];
        sum.lane[part] += (float)dot * scale * each.each[part];
    }
    return sum;
}

INLINE void load_e4m3(vector *to, const uint8_t *w) {
    for (int i = 0; i < 2 * WIDTH; i++) to[i / WIDTH].lane[i % WIDTH] = from_e4m3(w[i]);
}

/* They are NaN as they are loaded. */
INLINE most_bytes no_bytes(void) { return 0; }
INLINE most_bytes most_of(most_bytes most, const uint8_t *w) {
    (void)w;
    return most;
}
INLINE int is_nan(most_bytes most) { return most; }

#include "packed.h"
#include "norm.h"
#include "plain.h"

const struct build outsize_baseline = {widen, plain, quantise, packed, dequantise, normalise, &outsize_bf12_baseline};

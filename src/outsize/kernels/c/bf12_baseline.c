/* bf12 in portable C: what any machine runs. */
#include "bf12.h"
#include "bf12_high.h"

#define WIDTH 16
#define TILE 2

typedef struct {
    float lane[WIDTH];
} vector;

INLINE vector zero_vector(void) { return (vector){{0}}; }

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

INLINE int encode_group(const uint16_t *from, uint8_t *group, uint8_t *base) {
    uint16_t largest = 0, smallest = 0x7f, codes[GROUP];
    for (int i = 0; i < GROUP; i++) {
        uint16_t pair = (from[i] >> 8) & 0x7f;
        largest = pair > largest ? pair : largest;
        smallest = pair < smallest ? pair : smallest;
    }
    const int whole = largest - smallest <= REACH;
    uint16_t exceptions = 0;
    for (int i = 0; i < GROUP; i++) {
        uint16_t pair = (from[i] >> 8) & 0x7f, k = (uint16_t)(largest - pair);
        exceptions |= (uint16_t)(pair != 0 && k >= REACH);
        codes[i] = (uint16_t)(((from[i] >> 12) & 8) | (pair == 0 && !whole ? REACH : k));
    }
    if (exceptions && !whole) return 0;
    *base = (uint8_t)(largest | (whole ? WHOLE : 0));
    for (int i = 0; i < 64; i++) {
        group[place_of(i)] = (uint8_t)from[i];
        group[64 + place_of(i)] = (uint8_t)from[64 + i];
        group[GROUP + place_of(i)] = (uint8_t)(codes[i] | codes[64 + i] << 4);
    }
    return 1;
}

INLINE void expand_group(const uint8_t *group, uint8_t base, uint16_t *to) {
    uint16_t values[GROUP]; /* in the order of the bytes */
    for (int i = 0; i < 64; i++) {
        values[i] = (uint16_t)(high_bytes[base][group[GROUP + i] & 15] << 8 | group[i]);
        values[64 + i] = (uint16_t)(high_bytes[base][group[GROUP + i] >> 4] << 8 | group[64 + i]);
    }
    for (int i = 0; i < GROUP; i += 8) memcpy(to + i, values + (i & 64) + place_of(i & 63), 8 * sizeof *to);
}

INLINE void decode_group(const uint8_t *group, uint8_t base, vector *w) {
    uint16_t values[GROUP];
    expand_group(group, base, values);
    for (int i = 0; i < GROUP / 32; i++)
        for (int k = 0; k < 16; k++) {
            w[2 * i].lane[k] = from_bf16(values[32 * i + 2 * k]);
            w[2 * i + 1].lane[k] = from_bf16(values[32 * i + 2 * k + 1]);
        }
}

#include "bf12_template.h"

const struct bf12_build outsize_bf12_baseline = {encode, expand, order, multiply};

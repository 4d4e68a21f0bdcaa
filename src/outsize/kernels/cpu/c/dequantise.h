/* Packed weights multiplied out; a template, as packed.h. A build that can do a whole block faster defines HAS_MULTIPLY_OUT
 * and gives multiply_out(to, type, values, kind, sign, zero, scale), for blocks of 128 and types of 16 bits, and
 * multiply_e2m1 and multiply_e4m3(to, type, values, scale) for 32 and 128 numbers of those. */

/* Scales of `count` blocks from block `b` of output `out`. */
INLINE void scales_of(float *scale, const struct packed *w, int64_t out, int64_t b, int count) {
    const int64_t start = out * w->groups;
    const int type = w->scale_type;
    int i = 0;
    if (w->group == w->block) {
        for (; i + WIDTH <= count; i += WIDTH) store_floats(scale + i, load_vector(w->scale, type, start + b + i));
        for (; i < count; i++) scale[i] = load_one(w->scale, type, start + b + i);
    }
    for (; i < count; i++) scale[i] = load_one(w->scale, type, start + (b + i) * w->block / w->group);
}

/* Their zero points: as stored, and so unsigned. */
INLINE void zeros_of(float *zero, const struct packed *w, int64_t out, int64_t b, int count) {
    const int bits = w->kind == NIBBLES ? 4 : 8, per = 32 / bits;
    const int64_t start = out * w->groups;
    if (w->zero_kind == NO_ZEROS)
        for (int i = 0; i < count; i++) zero[i] = (float)(1 << (bits - 1));
    else if (w->zero_kind == BYTE_ZEROS)
        for (int i = 0; i < count; i++)
            zero[i] = (float)(((const int8_t *)w->zero)[start + (b + i) * w->block / w->group] + 128);
    else
        for (int i = 0; i < count; i++) {
            int64_t at = out / per * w->groups + (b + i) * w->block / w->group;
            zero[i] = (float)(((const uint32_t *)w->zero)[at] >> (out % per * bits) & ((1u << bits) - 1));
        }
}

/* `count` numbers as another type; whole blocks, so that the loops are made of vectors. */
INLINE void store_block(void *to, int type, int64_t start, const float *x, int64_t count) {
    uint16_t half[128];
    if (type == FP32) {
        memcpy((float *)to + start, x, (size_t)count * sizeof(float));
        return;
    }
    if (type == BF16)
        for (int i = 0; i < 128; i++) half[i] = to_bf16(x[i]);
    else
        for (int i = 0; i < 128; i++) half[i] = to_fp16(x[i]);
    memcpy((uint16_t *)to + start, half, (size_t)count * sizeof(uint16_t));
}

/* `size` bytes of a row that has `left`: what lies behind it must not be read, and so the last ones are copied to `rest`. */
INLINE const uint8_t *within(uint8_t *rest, const uint8_t *at, int64_t left, int64_t size) {
    if (left >= size) return at;
    memset(rest, 0, (size_t)size);
    memcpy(rest, at, (size_t)left);
    return rest;
}

/* mxfp4: numbers `start` .. `start` + `count` of output `out`, a block or what is left of a row. */
INLINE void e2m1_of(float *x, const struct packed *w, int64_t out, int64_t start, int64_t count) {
    static const float numbers[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const uint8_t *values = w->values + out * w->stride + start / 2;
    const uint8_t *exponents = (const uint8_t *)w->scale + out * w->groups + start / 32;
    for (int i = 0; i < count; i += 2) {
        const float scale = from_e8m0(exponents[i / 32]);
        x[i] = numbers[values[i / 2] & 15] * scale;
        x[i + 1] = numbers[values[i / 2] >> 4] * scale;
    }
}

static void dequantise_e2m1(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    for (int64_t row = first; row < last; row++)
        for (int64_t start = 0; start < w->in; start += 128) {
            const int64_t out = c->first + row, count = w->in - start < 128 ? w->in - start : 128;
            float x[128] = {0};
#ifdef HAS_MULTIPLY_OUT
            if (c->x_type != FP32) {
                for (int64_t i = start; i < start + count; i += 32)
                    multiply_e2m1((uint16_t *)c->y + row * w->in + i, c->x_type, w->values + out * w->stride + i / 2,
                                  from_e8m0(((const uint8_t *)w->scale)[out * w->groups + i / 32]));
                continue;
            }
#endif
            e2m1_of(x, w, out, start, count);
            store_block(c->y, c->x_type, row * w->in + start, x, count);
        }
}

static void dequantise_e4m3(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    for (int64_t row = first; row < last; row++)
        for (int64_t start = 0; start < w->in; start += 128) {
            const int64_t out = c->first + row, count = w->in - start < 128 ? w->in - start : 128;
            const float scale = load_one(w->scale, w->scale_type, out / w->group * w->groups + start / w->group);
            uint8_t rest[128];
            float x[128];
            const uint8_t *values = within(rest, w->values + out * w->stride + start, count, 128);
#ifdef HAS_MULTIPLY_OUT
            if (count == 128 && c->x_type != FP32 && !is_nan(most_of(no_bytes(), values))) {
                multiply_e4m3((uint16_t *)c->y + row * w->in + start, c->x_type, values, scale);
                continue;
            }
#endif
            for (int i = 0; i < 128; i++) x[i] = from_e4m3(values[i]) * scale;
            store_block(c->y, c->x_type, row * w->in + start, x, count);
        }
}

/* The weight multiplied out, each product rounded once: what many rows are multiplied with. */
static void dequantise(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    const int sign = w->kind == SIGNED_BYTES ? 128 : 0;
    if (w->kind == E2M1 || w->kind == E4M3) {
        (w->kind == E2M1 ? dequantise_e2m1 : dequantise_e4m3)(c, first, last);
        return;
    }
    for (int64_t row = first; row < last; row++)
        for (int64_t b = 0, start = 0; start < w->in; b++, start += w->block) {
            const int64_t out = c->first + row, count = w->in - start < w->block ? w->in - start : w->block;
            const uint8_t *values = w->values + out * w->stride;
            float scale, zero, x[128];
            uint8_t bytes[128] = {0};
            uint16_t pairs[64];
            scales_of(&scale, w, out, b, 1);
            zeros_of(&zero, w, out, b, 1);
#ifdef HAS_MULTIPLY_OUT
            if (count == 128 && c->x_type != FP32) {
                const uint8_t *at = values + (w->kind == NIBBLES ? start / 2 : start);
                multiply_out((uint16_t *)c->y + row * w->in + start, c->x_type, at, w->kind, sign, zero, scale);
                continue;
            }
#endif
            if (w->kind == NIBBLES) {
                memcpy(bytes, values + start / 2, (size_t)(count + 1) / 2);
                for (int i = 0; i < 64; i++) pairs[i] = (uint16_t)((bytes[i] | bytes[i] << 4) & 0x0f0f); /* little-endian */
                memcpy(bytes, pairs, sizeof pairs);
            } else {
                memcpy(bytes, values + start, (size_t)count);
            }
            for (int i = 0; i < 128; i++) x[i] = ((float)(bytes[i] ^ sign) - zero) * scale;
            store_block(c->y, c->x_type, row * w->in + start, x, count);
        }
}

/* Packed weights multiplied out; a template, as packed.h. A build that can do a whole block faster defines HAS_MULTIPLY_OUT
 * and gives multiply_out(to, type, values, kind, sign, zero, scale), for blocks of 128 and types of 16 bits. */

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

/* The weight multiplied out, each product rounded once: what many rows are multiplied with. */
static void dequantise(const struct call *c, int64_t first, int64_t last) {
    const struct packed *w = c->packed;
    const int sign = w->kind == SIGNED_BYTES ? 128 : 0;
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

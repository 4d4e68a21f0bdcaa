/* Rows of x times bf12; a template. The build gives WIDTH, vector, TILE, zero_vector, add and sum_of as for
 * bf12_template.h, and
 *
 *   number, value              an activation as `order` leaves it, and a vector of them or of weights
 *   load_values(x), fused(w, x, sum)
 *   decode_group(group, base, w)           a group as values
 *   float_at(x, column)                    one activation
 */
enum {
    PER_VALUE = sizeof(value) / sizeof(number),
    VECTORS = GROUP / PER_VALUE,
    AHEAD = 6, /* groups that are fetched before they are needed: the hardware's own prefetching stops at every page */
    /* Groups whose sums are kept apart: 64 numbers in each part, so that long rows err no more than short ones. With
     * several rows of x, also the width of a tile. */
    PANEL = WIDTH / 2,
};

/* One output: what the groups alone gave, the exceptions, the bias, and one rounding. An infinite activation times the
 * zero that stands for an exception is NaN: then the row is summed again, one by one. */
static void finish_out(const struct bf12_call *c, int64_t row, int64_t out, float sum) {
    const struct bf12 *w = c->weight;
    const number *x = (const number *)c->ordered + row * w->groups * GROUP;
    uint32_t entry = w->starts[out], last = w->starts[out + 1];
    for (uint32_t i = entry; i < last; i++)
        sum += from_bf16((uint16_t)w->entries[i]) * float_at(x, w->entries[i] >> 16);
    if (sum != sum && entry < last) {
        sum = 0;
        for (int64_t i = 0; i < w->in; i++) {
            const int64_t group = out * w->groups + i / GROUP;
            uint16_t bits = element_of(w->body + group * GROUP_BYTES, w->bases[group], (int)(i % GROUP));
            if (entry < last && w->entries[entry] >> 16 == i) bits = (uint16_t)w->entries[entry++];
            sum += from_bf16(bits) * float_at(x, i);
        }
    }
    if (c->bias) sum += load_one(c->bias, c->type, out);
    store_one(c->y, c->type, row * c->y_stride + out, sum);
}

/* Outputs out, out + apart, ... of one row of x. */
INLINE void multiply_outputs(const struct bf12_call *c, int64_t out, int64_t apart, int outputs) {
    const struct bf12 *w = c->weight;
    const uint8_t *group = w->body + out * w->groups * GROUP_BYTES, *base = w->bases + out * w->groups;
    const number *x = c->ordered;
    const int64_t step = apart * w->groups;
    vector totals[STREAMS];
    for (int s = 0; s < outputs; s++) totals[s] = zero_vector();
    for (int64_t panel = 0; panel < w->groups; panel += PANEL) {
        const int64_t end = w->groups - panel < PANEL ? w->groups : panel + PANEL;
        vector sums[STREAMS];
        for (int s = 0; s < outputs; s++) sums[s] = zero_vector();
        for (int64_t g = panel; g < end; g++)
#pragma GCC unroll 8
            for (int s = 0; s < outputs; s++) {
                const uint8_t *at = group + (g + s * step) * GROUP_BYTES;
                value values[VECTORS];
                prefetch_group(at + AHEAD * GROUP_BYTES);
                decode_group(at, base[g + s * step], values);
#pragma GCC unroll 16
                for (int v = 0; v < VECTORS; v++)
                    sums[s] = fused(values[v], load_values(x + g * GROUP + v * PER_VALUE), sums[s]);
            }
        for (int s = 0; s < outputs; s++) totals[s] = add(totals[s], sums[s]);
    }
    for (int s = 0; s < outputs; s++) finish_out(c, 0, out + s * apart, sum_of(totals[s]));
}

static void multiply_one(const struct bf12_call *c, int64_t first, int64_t last) {
    const int64_t apart = (last - first) / STREAMS;
    for (int64_t out = first; out < first + apart; out++) multiply_outputs(c, out, apart, STREAMS);
    for (int64_t out = first + STREAMS * apart; out < last; out++) multiply_outputs(c, out, 0, 1);
}

/* sums[tile row][row] += weights . x, for TILE rows of weights and `rows` rows of x. */
INLINE void multiply_tile(const value *weights, const number *x, int64_t padded, int64_t vectors, vector *sums,
                          int rows) {
    vector own[TILE][4];
#pragma GCC unroll 16
    for (int i = 0; i < TILE * rows; i++) own[i / rows][i % rows] = zero_vector();
    for (int64_t v = 0; v < vectors; v++) {
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++) {
            value own_x = load_values(x + row * padded + v * PER_VALUE);
#pragma GCC unroll 4
            for (int t = 0; t < TILE; t++) own[t][row] = fused(weights[t * PANEL * VECTORS + v], own_x, own[t][row]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE * rows; i++) {
        vector *sum = &sums[i / rows * MOST_ROWS + i % rows];
        *sum = add(*sum, own[i / rows][i % rows]);
    }
}

/* Outputs out, out + apart, ..., `outputs` of them, TILE at most, of all rows of x. */
static void multiply_outputs_of_rows(const struct bf12_call *c, int64_t out, int64_t apart, int outputs) {
    const struct bf12 *w = c->weight;
    const int64_t padded = w->groups * GROUP;
    value weights[TILE * PANEL * VECTORS];
    vector sums[TILE * MOST_ROWS];
    for (int i = 0; i < TILE * MOST_ROWS; i++) sums[i] = zero_vector();
    for (int64_t panel = 0; panel < w->groups; panel += PANEL) {
        const int64_t width = w->groups - panel < PANEL ? w->groups - panel : PANEL;
        for (int t = 0; t < TILE; t++) { /* a tile that is cut short has its last row several times */
            const int64_t at = (out + (t < outputs ? t : outputs - 1) * apart) * w->groups + panel;
            for (int64_t g = 0; g < width; g++) {
                const uint8_t *group = w->body + (at + g) * GROUP_BYTES;
                prefetch_group(group + w->groups * GROUP_BYTES); /* the same columns of the row that is next */
                decode_group(group, w->bases[at + g], weights + (t * PANEL + g) * VECTORS);
            }
        }
        for (int64_t row = 0; row < c->rows; row += 4) {
            const number *x = (const number *)c->ordered + row * padded + panel * GROUP;
            if (c->rows - row == 1)
                multiply_tile(weights, x, padded, width * VECTORS, sums + row, 1);
            else if (c->rows - row == 2)
                multiply_tile(weights, x, padded, width * VECTORS, sums + row, 2);
            else if (c->rows - row == 3)
                multiply_tile(weights, x, padded, width * VECTORS, sums + row, 3);
            else
                multiply_tile(weights, x, padded, width * VECTORS, sums + row, 4);
        }
    }
    for (int t = 0; t < outputs; t++)
        for (int64_t row = 0; row < c->rows; row++)
            finish_out(c, row, out + t * apart, sum_of(sums[t * MOST_ROWS + row]));
}

static void multiply_several(const struct bf12_call *c, int64_t first, int64_t last) {
    const int64_t apart = (last - first) / TILE;
    for (int64_t out = first; out < first + apart; out++) multiply_outputs_of_rows(c, out, apart, TILE);
    if (first + TILE * apart < last)
        multiply_outputs_of_rows(c, first + TILE * apart, 1, (int)(last - first - TILE * apart));
}

static void multiply(const struct bf12_call *c, int64_t first, int64_t last) {
    if (c->rows == 1)
        multiply_one(c, first, last);
    else
        multiply_several(c, first, last);
}

/* The scan of integer rows of one vector unit, which defines before it includes this:
 *
 *   UNIT         attributes of its functions
 *   BAND         left rows that it multiplies with a panel at once
 *   OF(name)     `name` with the unit's own beginning
 *   OF(passed)   below
 *   PRODUCT      the float32 product of two rows
 *   STRETCH      longest_stretch(): the square of the longest stretch of a row summed in 16 bits
 *   WIDE         (perhaps) the panel's rows are also wanted one after the other in 16 bits
 */

#include <string.h>

/* Integer and float rows of the left side that stay in the second-level cache. */
#define CACHED_BYTES (320 * 1024)
/* Left rows come in multiples of it; the same for all units, so that pairs come in one order. */
#define HEIGHT_STEP 16

/* A mask of right rows for each of the BAND left rows: those whose integer score with it exceeds the
 * bar of either. False if there are none, and masks are not written. `small`: 16 bits hold the sums
 * of all stretches. */
UNIT static inline int OF(passed)(
    const uint8_t *band, const int32_t *bias, const int32_t *bar, int small, const Panel *panel,
    int64_t depth, uint32_t masks[BAND]
);

/* Left rows above zero, bands of them, quad by quad; and the squares of the bands' longest
 * stretches. */
UNIT static void OF(fill_bands)(
    const int8_t *rows, int64_t n, int64_t depth, uint8_t *bands, int32_t *largest
) {
    for (int64_t first = 0; first < n; first += BAND, bands += BAND * depth, largest++) {
        *largest = 0;
        memset(bands, ZERO, (size_t)(BAND * depth));
        for (int64_t r = 0; r < BAND && first + r < n; r++) {
            const int8_t *row = rows + (first + r) * depth;
            const int32_t longest = STRETCH(row, depth, NULL);
            if (longest > *largest) *largest = longest;
            for (int64_t d = 0; d < depth; d += QUAD) {
                uint32_t quad;
                memcpy(&quad, row + d, QUAD);
                quad ^= 0x80808080; /* adds ZERO to each */
                memcpy(bands + d * BAND + QUAD * r, &quad, QUAD);
            }
        }
    }
}

UNIT static void OF(open_panel)(
    Panel *panel, const int8_t *packed, const Side *right, int64_t first, int64_t n, int64_t depth
) {
    panel->head = (const Head *)packed;
    panel->shifts = (const int16_t *)(packed + sizeof(Head));
    panel->quads = packed + panel_bytes(depth) - PANEL * depth;
    for (int64_t c = 0; c < PANEL; c++) {
        panel->bias[c] = first + c < n ? right->bias[first + c] : INT32_MIN / 2;
        panel->bar[c] = first + c < n ? right->bar[first + c] : INT32_MAX;
    }
#ifdef WIDE
    for (int64_t c = 0; c < PANEL; c++)
        for (int64_t d = 0; d < depth; d++)
            panel->wide[c * depth + d] = panel->quads[d / QUAD * QUAD * PANEL + QUAD * c + d % QUAD];
#endif
}

UNIT static int OF(scan_integers)(void *given) {
    Integers *job = given;
    const Side *left = &job->left, *right = &job->right;
    const int64_t n_left = job->n_left, n_right = job->n_right;
    const int64_t depth = job->depth, width = job->width;
    int64_t looks_left = job->most_looks;
    int64_t height = CACHED_BYTES / (depth + (int64_t)sizeof(float) * width);
    height = height / HEIGHT_STEP * HEIGHT_STEP;
    if (height < HEIGHT_STEP) height = HEIGHT_STEP;
    if (height > n_left) height = (n_left + HEIGHT_STEP - 1) / HEIGHT_STEP * HEIGHT_STEP;
    uint8_t *bands = malloc((size_t)(height * depth));
    int32_t *bias = malloc(sizeof(int32_t) * (size_t)height);
    int32_t *bar = malloc(sizeof(int32_t) * (size_t)height);
    int32_t *largest = malloc(sizeof(int32_t) * (size_t)height);
    Panel panel;
#ifdef WIDE
    panel.wide = malloc(sizeof(int16_t) * (size_t)((PANEL + 1) * depth));
    int result = panel.wide ? DONE : NO_MEMORY;
#else
    panel.wide = NULL;
    int result = DONE;
#endif
    if (!(bands && bias && bar && largest)) result = NO_MEMORY;
    for (int64_t top = 0; top < n_left && result == DONE; top += height) {
        const int64_t here = n_left - top < height ? n_left - top : height;
        const int64_t filled = (here + BAND - 1) / BAND * BAND;
        OF(fill_bands)(left->rows + top * depth, here, depth, bands, largest);
        for (int64_t r = 0; r < filled; r++) {
            bias[r] = r < here ? left->bias[top + r] : 0;
            bar[r] = r < here ? left->bar[top + r] : INT32_MAX;
        }
        const int8_t *packed = right->rows;
        for (int64_t side = 0; side < n_right && result == DONE;
             side += PANEL, packed += panel_bytes(depth)) {
            OF(open_panel)(&panel, packed, right, side, n_right, depth);
            for (int64_t r = 0; r < filled && result == DONE; r += BAND) {
                const int small = (int64_t)largest[r / BAND] * panel.head->largest <=
                                  (int64_t)LARGEST * LARGEST;
                uint32_t masks[BAND];
                if (!OF(passed)(
                        bands + r * depth, bias + r, bar + r, small, &panel, depth, masks))
                    continue;
                for (int q = 0; q < BAND && result == DONE; q++) {
                    const int64_t i = top + r + q;
                    for (uint32_t mask = masks[q]; mask && result == DONE; mask &= mask - 1) {
                        const int64_t j = side + __builtin_ctz(mask);
                        /* Rows that fill up a band or a panel pass a bar that lets all through. */
                        if (i >= n_left || j >= n_right || left->key[i] == right->key[j]) continue;
                        if (!looks_left--) {
                            result = FULL;
                            break;
                        }
                        float score =
                            PRODUCT(exact_row(left, i, width), exact_row(right, j, width), width);
                        if (left->factor) score *= left->factor[i];
                        if (right->factor) score *= right->factor[j];
                        if (score >= left->floor[i])
                            result = push(
                                &job->by_left, job->first + i, job->first_right + j, score);
                        if (score >= right->floor[j] && result == DONE)
                            result = push(
                                &job->by_right, job->first_right + j, job->first + i, score);
                    }
                }
            }
        }
    }
    free(panel.wide);
    free(bands);
    free(bias);
    free(bar);
    free(largest);
    return result;
}
